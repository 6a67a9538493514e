"""Commands on a real pseudo-terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """How a command ended, what the terminal was sent, and what went to the stream that was no terminal."""

    code: int
    terminal: str
    other: str


def on_terminal(words: list[str], stream: str, environment: Mapping[str, str] | None = None) -> Shown:
    """Run a command with `stdout`, `stderr` or `both` on a terminal of 100 columns, and the rest on a pipe."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    streams = {name: slave if stream in (name, "both") else subprocess.PIPE for name in ("stdout", "stderr")}
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    variables |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", **(environment or {})}
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=variables, **streams)
    os.close(slave)
    shown = _read(master)
    rest = b"".join(part or b"" for part in process.communicate(timeout=60))
    return Shown(process.returncode, shown.decode(), rest.decode())


def _read(master: int) -> bytes:
    """All until the last program closes its side, which Linux reports as an error."""
    parts = []
    try:
        while part := os.read(master, 65536):
            parts.append(part)
    except OSError:
        pass
    finally:
        os.close(master)
    return b"".join(parts)
