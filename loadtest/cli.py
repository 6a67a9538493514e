"""python -m loadtest run | sweep | compare | mlperf | report."""

import sys
from collections.abc import Sequence

from alexnet_triton.client.errors import ClassifierError, ServerError
from alexnet_triton.client.output import printable
from alexnet_triton.loadtest.arguments import EXIT_CODES, PROGRAM, Parser
from alexnet_triton.loadtest.errors import LoadTestError

USAGE, SERVER, INTERRUPTED = 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit codes are in --help."""
    from alexnet_triton.serving.errors import ServingError

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
    from alexnet_triton.loadtest import compare, mlperf, report, run, sweep

    parser = Parser(prog="python -m loadtest", description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for module in (run, sweep, compare, mlperf, report):
        module.add_parser(commands)
    return parser


def _complain(message: object, code: int) -> int:
    print(f"{PROGRAM}: {printable(str(message))}", file=sys.stderr)
    return code
