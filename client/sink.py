"""Where results go, so that what was written stays written when the process is killed."""

import fcntl
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from client.errors import UsageError
from client.resume import Held, read_held


class Sink:
    """A file or standard output; every result is handed to the system as it comes."""

    def __init__(self, stream: BinaryIO, held: Held, is_file: bool) -> None:
        self._stream, self._is_file = stream, is_file
        self.held = held

    def write(self, text: str) -> None:
        """One whole result.

        Raises:
            UsageError: the disk is full, or the like.
        """
        try:
            self._stream.write(text.encode("utf-8", "surrogateescape"))
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UsageError(f"results cannot be written: {(error.strerror or str(error)).lower()}") from None

    def __enter__(self) -> "Sink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_file:
            self._stream.close()


def open_sink(file: str | None, form: str, resume: bool) -> Sink:
    """Standard output, or a file: emptied, or with `resume` cut behind its last whole result and added to.

    Raises:
        UsageError: it cannot be written, another process writes it, or it holds something else.
    """
    if file is None:
        return Sink(sys.stdout.buffer, Held(), is_file=False)
    try:
        stream = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        _lock(stream, file)
        regular = Path(file).is_file()
        held = read_held(file, form) if resume and regular else Held()
        if regular:
            stream.truncate(held.end)
            stream.seek(held.end)
    except OSError as error:
        raise UsageError(f"--output {file}: {(error.strerror or str(error)).lower()}") from None
    return Sink(stream, held, is_file=True)


def _lock(stream: BinaryIO, file: str) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"--output {file}: another run is writing it; give this one a file of its own") from None
