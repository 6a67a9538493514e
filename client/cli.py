"""The command: `main(argv)` parses, runs, and returns the exit code."""

import argparse
import os
import sys
from collections.abc import Sequence

from alexnet_triton.client.arguments import PROGRAM, Parser, build_config, build_info_parser, build_parser
from alexnet_triton.client.errors import ServerError, UsageError
from alexnet_triton.client.output import printable

OK, SOME_FAILED, USAGE, NO_SERVER, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. 0: all classified; 1: some image failed; 2: usage; 3: no server."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it would add its own lines to the one that says what failed
    try:
        return _run(words)
    except UsageError as error:
        return _complain(error, USAGE)
    except ServerError as error:
        return _complain(error, NO_SERVER)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Who read the results has enough. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _run(words: list[str]) -> int:
    if words[:1] == ["info"]:
        return _info(build_info_parser().parse_args(words[1:]))
    parser = build_parser()
    arguments = parser.parse_args(words)
    if arguments.completion:
        return _complete(parser, arguments.completion)
    if not arguments.images:
        parser.error("no IMAGE is named")
    return _classify(arguments)


def _classify(arguments: argparse.Namespace) -> int:
    import asyncio

    from alexnet_triton.client.run import Job, run

    job = Job.from_arguments(arguments)
    return SOME_FAILED if asyncio.run(run(job, build_config(arguments))) else OK


def _info(arguments: argparse.Namespace) -> int:
    import asyncio

    from alexnet_triton.client.info import describe

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


def _complain(message: object, code: int) -> int:
    print(f"{PROGRAM}: {printable(str(message))}", file=sys.stderr)
    return code
