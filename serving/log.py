"""Reading tritonserver's log for the reason of a failure."""

import re
from pathlib import Path

_FAILED_LOAD = re.compile(r"Z E \d+ \S+ \"failed to load (?P<reason>'\w+' version \d+: .*?)\"?$", re.MULTILINE)
_FATAL = re.compile(r"^error: (?P<reason>.*)$", re.MULTILINE)
_PORT = re.compile(r"Socket '[^']*:(?P<port>\d+)' already in use")
_MAX_CHARACTERS = 300


def failure(path: Path) -> str | None:
    """Why tritonserver ended, in one line: the model that did not load, else its last words, else None."""
    text = path.read_text(errors="replace")
    match = _FAILED_LOAD.search(text) or _FATAL.search(text)
    return match["reason"].replace("\\", "")[:_MAX_CHARACTERS].strip() if match else None


def taken_port(path: Path) -> int | None:
    """The port that tritonserver says another program has, or None."""
    match = _PORT.search(path.read_text(errors="replace"))
    return int(match["port"]) if match else None
