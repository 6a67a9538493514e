"""The command `alexnet-classify`: parses its words, runs, and returns the exit code."""

import os
import sys
from collections.abc import Sequence

from alexnet_triton.client.arguments import PROGRAM, build_config, build_info_parser, build_parser
from alexnet_triton.client.errors import UsageError
from alexnet_triton.common.command import Parser, finish

OK, SOME_FAILED = 0, 1


def main(words: Sequence[str] | None = None) -> int:
    """Run the command. 0: all classified; 1: some image failed; 2: usage; 3: no server."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would add its own lines to the one that says what failed
    return finish(PROGRAM, lambda: _run(list(sys.argv[1:] if words is None else words)))


def _run(words: list[str]) -> int:
    try:
        return _info(words[1:]) if words[:1] == ["info"] else _classify(words)
    except BrokenPipeError:
        # The reader of the results has left. Without this Python complains once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


# asyncio, numpy and Pillow are loaded in the functions that need them: `--help` and a refusal come sooner.


def _classify(words: list[str]) -> int:
    parser = build_parser()
    arguments = parser.parse_args(words)
    if arguments.completion:
        return _complete(parser, arguments.completion)
    if not arguments.images:
        parser.error("no IMAGE is named")
    import asyncio

    from alexnet_triton.client.run import Job, run

    job = Job.from_options(arguments)
    return SOME_FAILED if asyncio.run(run(job, build_config(arguments))) else OK


def _info(words: list[str]) -> int:
    import asyncio

    from alexnet_triton.client.info import describe

    arguments = build_info_parser().parse_args(words)
    sys.stdout.write(asyncio.run(describe(build_config(arguments), arguments.wait, arguments.format == "json")))
    return OK


def _complete(parser: Parser, shell: str) -> int:
    try:
        import shtab
    except ImportError:
        raise UsageError("--completion needs shtab: pip install shtab") from None
    images = next(action for action in parser._actions if action.dest == "images")
    vars(images)["complete"] = shtab.FILE
    sys.stdout.write(shtab.complete(parser, shell))
    return OK
