"""How every command of this project parses its words, fails in one line, and ends with its exit code."""

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

FAILED, USAGE, INTERRUPTED = 1, 2, 130


class UserError(Exception):
    """What a user can mend. The message is one line that names the thing and the next step.

    The root of each room's errors; `exit_code` is the command's.
    """

    exit_code = FAILED


class Parser(argparse.ArgumentParser):
    """A parser that answers a wrong command line with one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        one_line = " ".join(message.split())
        self.exit(USAGE, f"{self.prog}: {one_line}; see {self.prog} --help\n")


def finish(name: str, work: Callable[[], int | None]) -> int:
    """Do a command's work and return its exit code: the work's own, or that of its failure, told in one line.

    Args:
        name: the command, as the line on stderr begins.
        work: returns None or 0 when all went well, or an exit code.
    """
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        if frame and frame.f_code.co_filename.startswith("<frozen importlib"):  # where it is forgotten: a moment later
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # SIGALRM comes here too
        else:
            raise KeyboardInterrupt

    loading = signal.getsignal(signal.SIGINT) is _leave
    if loading:
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, interrupt)
    try:
        return work() or 0
    except BaseException as error:
        code, message = _explain(KeyboardInterrupt() if interrupts else error)  # libraries make others of it
        complain(name, message)
        if code == INTERRUPTED and loading:  # threads of PyTorch and the runtimes may still be at work
            sys.stdout.flush()
            os._exit(code)
        return code
    finally:
        if loading:  # nothing of Python's is to run while it takes itself down: a signal ends it, as any program
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)


def complain(name: str, message: object) -> None:
    """One line on stderr."""
    print(f"{name}: {printable(' '.join(str(message).split()))}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with line breaks, control characters and undecodable bytes escaped, as `ls -b` does.

    Names of files and labels cannot write on the terminal then.
    """
    return text if text.isprintable() else "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a name that is not UTF-8
        return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
    return character.encode("unicode_escape").decode()


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; nothing is left half written"
    if isinstance(error, UserError):
        return error.exit_code, str(error)
    if isinstance(error, OSError):  # a full disk has many places to show itself
        place = f"{error.filename}: " if error.filename else ""
        return FAILED, place + (error.strerror or str(error)).lower()
    raise error


def leave_on_interrupt() -> None:
    """End at once on Ctrl-C while a command loads its modules. From `finish` on it raises KeyboardInterrupt.

    A KeyboardInterrupt inside the import system is printed and forgotten, and the command would run all the same.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored under nohup: it stays so
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    complain("alexnet-triton", "interrupted; nothing was done")
    os._exit(INTERRUPTED)


def positive_int(text: str) -> int:
    """An argument's type: a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def positive_float(text: str) -> float:
    """An argument's type: a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def fraction(text: str) -> float:
    """An argument's type: a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def port(text: str) -> int:
    """An argument's type: a port, 0 for any free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 0 to 65535")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
