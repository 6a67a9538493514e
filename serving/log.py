"""Reading tritonserver's log for the reason of a failure."""

import re
from pathlib import Path

_FAILED_LOAD = re.compile(r"Z E \d+ \S+ \"failed to load (?P<reason>'\w+' version \d+: .*?)\"?$", re.MULTILINE)
_FATAL = re.compile(r"^error: (?P<reason>.*)$", re.MULTILINE)
_PORT = re.compile(r"Socket '[^']*:(?P<port>\d+)' already in use")
_ABORT = "boost::interprocess::lock_exception"
_MAX_CHARACTERS = 300


def failure(path: Path, start: int = 0) -> str | None:
    """Why tritonserver ended, in one line: the model that did not load, else its last words, else None.

    `start` is where its part of the log begins, in bytes.
    """
    text = _text(path, start)
    match = _FAILED_LOAD.search(text) or _FATAL.search(text)
    return match["reason"].replace("\\", "")[:_MAX_CHARACTERS].strip() if match else None


def taken_port(path: Path, start: int = 0) -> int | None:
    """The port that tritonserver says another program has, or None."""
    match = _PORT.search(_text(path, start))
    return int(match["port"]) if match else None


def backend_aborted(path: Path, start: int = 0) -> bool:
    """Whether the Python backend ended tritonserver over a lock that it shares with a stub."""
    return _ABORT in _text(path, start)


def _text(path: Path, start: int) -> str:
    return path.read_bytes()[start:].decode(errors="replace")
