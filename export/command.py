"""How every export command ends: 0, or one line on stderr and 1, or 130 for Ctrl-C."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from alexnet_triton.export.errors import ExportError

FAILED, INTERRUPTED = 1, 130


def stay_quiet_while_loading() -> None:
    """For Ctrl-C in the seconds in which a command loads PyTorch and the runtimes: nothing has been done yet."""
    signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(_complain("export", "interrupted; nothing was done", INTERRUPTED))


def finish(name: str, work: Callable[[], object]) -> int:
    """Do a command's work; its exit code."""
    is_program = signal.getsignal(signal.SIGINT) is _leave
    if is_program:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work()
    except BaseException as error:
        code = _explain(name, error)
        if code == INTERRUPTED and is_program:  # all is cleaned up but the runtimes' threads, still at work
            os._exit(code)
        return code
    return 0


def _explain(name: str, error: BaseException) -> int:
    if _is_interrupt(error):
        return _complain(name, "interrupted; nothing is left half written", INTERRUPTED)
    if isinstance(error, ExportError):
        return _complain(name, str(error), FAILED)
    if isinstance(error, OSError):  # a full disk has many places to show itself
        place = f"{error.filename}: " if error.filename else ""
        return _complain(name, f"{place}{(error.strerror or str(error)).lower()}", FAILED)
    raise error


def _is_interrupt(error: BaseException | None) -> bool:
    """Modules that are interrupted while they load, and PyTorch's exporter, raise errors of their own after it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _complain(name: str, message: str, code: int) -> int:
    print(f"{name}: {message}", file=sys.stderr, flush=True)
    return code
