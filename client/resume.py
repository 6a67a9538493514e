"""The file of results: written as they come, read again by --resume, begun and continued with the same settings."""

import csv
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from alexnet_triton.client.errors import UsageError
from alexnet_triton.client.output import TRANSIENT
from alexnet_triton.common.files import WriteError, replacing, write_json


@dataclass
class CompletedResults:
    """What a file of results holds already.

    Attributes:
        keys: eight bytes of a hash for each path, so that a million of them take little memory.
        failed: how many are failures of the images' own.
        transient: how many are failures of a server or the network, which are not in `keys`.
        end: offset behind the last whole result; a killed run may have left half of one there.
        has_header: whether a CSV's first line is there.
    """

    keys: set[int] = field(default_factory=set)
    failed: int = 0
    transient: int = 0
    end: int = 0
    has_header: bool = False

    def __contains__(self, path: str) -> bool:
        return bool(self.keys) and key(path) in self.keys


class ResultWriter:
    """Writes to a file or to standard output; every result is handed to the system as it comes."""

    def __init__(self, stream: BinaryIO, completed: CompletedResults, is_file: bool) -> None:
        self._stream, self._is_file = stream, is_file
        self.completed = completed

    def write(self, text: str) -> None:
        """Write one whole result.

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

    def __enter__(self) -> "ResultWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_file:
            self._stream.close()


def open_writer(file: str | None, form: str, resume: bool) -> ResultWriter:
    """Open standard output, or empty a file; `resume` keeps the file's whole results and adds to them.

    Results that failed by a server or the network are taken out of the file, in one step, so that they are tried again.

    Raises:
        UsageError: it cannot be written, another process writes it, or it holds something else.
    """
    if file is None:
        return ResultWriter(sys.stdout.buffer, CompletedResults(), is_file=False)
    try:
        stream = os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        _lock(stream, file)
        regular = Path(file).is_file()
        completed = read_completed(file, form) if resume and regular else CompletedResults()
        if completed.transient:
            _drop_transient(file, form)
            stream.close()
            return open_writer(file, form, resume)
        if regular:
            stream.truncate(completed.end)
            stream.seek(completed.end)
    except WriteError as error:
        raise UsageError(f"--resume: {error}") from None
    except OSError as error:
        raise UsageError(f"--output {file}: {(error.strerror or str(error)).lower()}") from None
    return ResultWriter(stream, completed, is_file=True)


def _lock(stream: BinaryIO, file: str) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(stream.fileno()), Path(file).stat()):  # else it was replaced while it was opened
            return
    except BlockingIOError:
        pass
    raise UsageError(f"--output {file}: another run is writing it; give this one a file of its own")


def _drop_transient(file: str, form: str) -> None:
    path = Path(file).resolve()
    with replacing(path) as temporary, temporary.open("wb") as stream:
        shutil.copymode(path, temporary)
        stream.writelines(record for record in _records(file, form) if not _parse(record, form)[1].endswith(TRANSIENT))


def read_completed(file: str, form: str) -> CompletedResults:
    """Read a file of JSON lines or CSV from its start.

    Raises:
        UsageError: it holds something else, and added results would spoil it.
    """
    completed = CompletedResults()
    try:
        for record in _records(file, form):
            _add(completed, record, form)
            completed.end += len(record)
    except (ValueError, KeyError, TypeError, csv.Error, StopIteration):
        where = f"no {form} results at byte {completed.end}"
        raise UsageError(f"--resume: {file} holds {where}; give another file") from None
    return completed


def _add(completed: CompletedResults, record: bytes, form: str) -> None:
    if form == "csv" and not completed.has_header:
        if not record.startswith(b"path,model,version,ms,error"):
            raise ValueError
        completed.has_header = True
        return
    path, error = _parse(record, form)
    if error.endswith(TRANSIENT):
        completed.transient += 1
    else:
        completed.keys.add(key(path))
        completed.failed += bool(error)


def _parse(record: bytes, form: str) -> tuple[str, str]:
    """A result's path and its error, empty if it has none."""
    if form == "json":
        entry = json.loads(record)
        return entry["path"], str(entry.get("error", ""))
    path, _, _, _, error, *_ = next(csv.reader([record.decode("utf-8", "surrogateescape")]))
    return path, error


def key(path: str) -> int:
    """A path's hash, in 64 bits."""
    encoded = path.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")


def _records(file: str, form: str) -> Iterator[bytes]:
    """Whole results: one cut off at the end is left out; in CSV a line break between quotes belongs to a name."""
    record = b""
    with Path(file).open("rb") as stream:
        for line in stream:
            record += line
            if line.endswith(b"\n") and (form == "json" or record.count(b'"') % 2 == 0):
                yield record
                record = b""


@dataclass(frozen=True)
class RunSettings:
    """The options that decide what a result holds, named as on the command line."""

    model: str
    model_version: str
    top: int
    threshold: float
    labels: tuple[str, ...]


def keep_settings(file: str, settings: RunSettings, begun: bool) -> None:
    """Write `FILE.settings`. If FILE was `begun` before, compare instead: its settings must be these.

    Raises:
        UsageError: the settings differ, or cannot be read or written.
    """
    path = Path(f"{file}.settings")
    if not Path(file).is_file():  # a device or a pipe, which nobody resumes
        return
    try:
        if begun and path.is_file():
            _compare(file, path, settings)
        else:
            write_json(path, asdict(settings))
    except WriteError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _compare(file: str, path: Path, settings: RunSettings) -> None:
    try:
        before = json.loads(path.read_text())
        before = RunSettings(**before | {"labels": tuple(before["labels"])})
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{path}: damaged; remove it to go on with this command's settings") from None
    for name, old in asdict(before).items():
        if getattr(settings, name) != old:
            option = "--" + name.replace("_", "-")
            was = "other --labels" if name == "labels" else f"{option} {old}" if old else f"no {option}"
            raise UsageError(f"--resume: {file} was begun with {was}; give the same, or another --output")
