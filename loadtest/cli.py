"""The command `loadtest`: run, sweep, compare, mlperf and report."""

import argparse
from collections.abc import Sequence

from alexnet_triton.common.command import Parser, finish
from alexnet_triton.loadtest import compare, mlperf, report, run, sweep
from alexnet_triton.loadtest.arguments import EXIT_CODES, PROGRAM
from alexnet_triton.loadtest.errors import TargetError
from alexnet_triton.serving.errors import ServingError


def main(words: Sequence[str]) -> int:
    """Run a command; its exit codes are in --help."""
    arguments = _parser().parse_args(words)
    arguments.words = list(words)
    return finish(PROGRAM, lambda: _call(arguments))


def _call(arguments: argparse.Namespace) -> int:
    try:
        return arguments.call(arguments)
    except ServingError as error:
        raise TargetError(str(error)) from error


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for module in (run, sweep, compare, mlperf, report):
        module.add_parser(commands)
    return parser
