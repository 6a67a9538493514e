"""What a file of results holds already."""

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from client.errors import UsageError


@dataclass
class Held:
    """Results in a file.

    Attributes:
        keys: eight bytes of a hash for each path, so that a million of them take little memory.
        failed: how many are failures.
        end: offset behind the last whole result; a killed run may have left a part of one behind it.
        has_header: whether a CSV's first line is there.
    """

    keys: set[int] = field(default_factory=set)
    failed: int = 0
    end: int = 0
    has_header: bool = False

    def __contains__(self, path: str) -> bool:
        return bool(self.keys) and key(path) in self.keys

    def __len__(self) -> int:
        return len(self.keys)


def key(path: str) -> int:
    """A path's hash, in 64 bits."""
    encoded = path.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")


def read_held(file: str, form: str) -> Held:
    """Read a file of JSON lines or CSV from its start.

    Raises:
        UsageError: it holds something else, so adding to it would spoil it.
    """
    held = Held()
    try:
        for record in _csv_records(file) if form == "csv" else _lines(file):
            _add(held, record, form)
            held.end += len(record)
    except (ValueError, KeyError, TypeError, csv.Error, StopIteration):
        raise UsageError(f"--resume: {file} holds no {form} results at byte {held.end}; give another file") from None
    return held


def _add(held: Held, record: bytes, form: str) -> None:
    if form == "json":
        entry = json.loads(record)
        path, failed = entry["path"], "error" in entry
    elif not held.has_header:
        if not record.startswith(b"path,model,version,ms,error"):
            raise ValueError
        held.has_header = True
        return
    else:
        path, _, _, _, error, *_ = next(csv.reader([record.decode("utf-8", "surrogateescape")]))
        failed = bool(error)
    held.keys.add(key(path))
    held.failed += failed


def _lines(file: str) -> Iterator[bytes]:
    """Whole lines; a last one without its end is left out."""
    with Path(file).open("rb") as stream:
        yield from (line for line in stream if line.endswith(b"\n"))


def _csv_records(file: str) -> Iterator[bytes]:
    """Whole rows: a line break between quotes belongs to a name."""
    record = b""
    for line in _lines(file):
        record += line
        if record.count(b'"') % 2 == 0:
            yield record
            record = b""
