"""python -m loadtest run | sweep | compare | mlperf | report."""

import sys
from collections.abc import Sequence

from client.errors import ClassifierError, ServerError
from client.names import printable
from loadtest.arguments import EXIT_CODES, PROGRAM, Parser
from loadtest.errors import LoadTestError

USAGE, SERVER, INTERRUPTED = 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit codes are in --help."""
    from serving.errors import ServingError

    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    arguments.words = words
    try:
        return arguments.call(arguments)
    except LoadTestError as error:
        return _complain(error, error.exit_code)
    except (ServerError, ServingError) as error:
        return _complain(error, SERVER)
    except ClassifierError as error:
        return _complain(error, USAGE)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _parser() -> Parser:
    from loadtest import command_compare, command_mlperf, command_report, command_run, command_sweep

    parser = Parser(prog="python -m loadtest", description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for module in (command_run, command_sweep, command_compare, command_mlperf, command_report):
        module.add_parser(commands)
    return parser


def _complain(message: object, code: int) -> int:
    print(f"{PROGRAM}: {printable(str(message))}", file=sys.stderr)
    return code
