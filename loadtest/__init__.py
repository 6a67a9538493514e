"""Load tests whose figures can be believed: open and closed loops, sweeps, MLPerf LoadGen, Locust users, the report."""

import argparse
from collections.abc import Sequence

from alexnet_triton.common.command import Parser, finish


def main(words: Sequence[str]) -> int:
    """The command `loadtest`: run, sweep, compare, mlperf and report; its exit codes are in --help."""
    from alexnet_triton.loadtest.arguments import PROGRAM  # this package is loaded by programs that need none of it

    arguments = _parser().parse_args(words)
    arguments.words = list(words)
    return finish(PROGRAM, lambda: _call(arguments))


def _call(arguments: argparse.Namespace) -> int:
    from alexnet_triton.loadtest.errors import TargetError
    from alexnet_triton.serving.errors import ServingError

    try:
        return arguments.call(arguments)
    except ServingError as error:
        raise TargetError(str(error)) from error


def _parser() -> Parser:
    from alexnet_triton.loadtest import compare, mlperf, report, run, sweep
    from alexnet_triton.loadtest.arguments import EXIT_CODES, PROGRAM

    description = "Load on a server: run, sweep, compare, mlperf and report."
    parser = Parser(prog=PROGRAM, description=description, epilog=EXIT_CODES, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for module in (run, sweep, compare, mlperf, report):
        module.add_parser(commands)
    return parser
