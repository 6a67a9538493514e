"""The command: `main(argv)` parses, runs, and returns the exit code."""

import asyncio
import os
import sys
from collections.abc import Sequence

from client.arguments import PROGRAM, build_config, build_parser
from client.errors import ServerError, UsageError
from client.names import printable

OK, SOME_FAILED, USAGE, NO_SERVER, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. 0: all classified; 1: some image failed; 2: usage; 3: no server."""
    arguments = build_parser().parse_args(argv)
    try:
        from client.run import run

        return SOME_FAILED if asyncio.run(run(arguments, build_config(arguments))) else OK
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


def _complain(message: object, code: int) -> int:
    print(f"{PROGRAM}: {printable(str(message))}", file=sys.stderr)
    return code
