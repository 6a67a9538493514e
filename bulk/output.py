"""The folder of results: a list of all inputs, cut into parts of fixed rows, and a Parquet file for each finished part.

A part's file appears in one step, under the part's number, when it is whole. What is there is done; the rest is to do.
So every input is in the output once, however a run ends, and a part that is computed twice replaces itself.
"""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alexnet_triton.bulk.inputs import InputError, read_list, write_list
from alexnet_triton.bulk.stages import ANSWER_SCHEMA
from alexnet_triton.common.files import replacing, write_json

# Names with "_" in front are no data to readers of a folder of Parquet files.
LIST, SETTINGS, LOCK = "_inputs.arrow", "_settings.json", "_lock"
ROWS_PER_FILE = 2048
SCHEMA = pa.schema([pa.field("path", pa.string()), *(each for each in ANSWER_SCHEMA if each.name != "number")])


@dataclass(frozen=True)
class BulkSettings:
    """What decides an output's content: the same command continues it, another is refused."""

    input: str
    folder: str  # that a relative input counts from
    column: str | None
    model_version: str
    model: str  # the network's file and its SHA-256, or Triton's name of the model
    top: int
    rows_per_file: int = ROWS_PER_FILE


class OutputFolder:
    """The results of one command. Use `open_output`, which sees that there is one writer."""

    def __init__(self, path: Path, settings: BulkSettings) -> None:
        """`path` has settings and list."""
        self.path, self.settings = path, settings
        self.inputs = read_list(path / LIST)
        self._waiting: dict[int, list[pa.Table]] = {}

    @property
    def parts(self) -> range:
        """The numbers of all parts."""
        return range(-(-self.inputs.num_rows // self.settings.rows_per_file))

    def file(self, part: int) -> Path:
        """A part's file; it is there when the part is done."""
        return self.path / f"part-{part:06}.parquet"

    def rows(self, part: int) -> pa.Table:
        """A part's rows of the list, with their `number` in the list."""
        first = part * self.settings.rows_per_file
        rows = self.inputs.slice(first, self.settings.rows_per_file)
        return rows.append_column("number", pa.array(range(first, first + rows.num_rows), pa.int64()))

    def missing(self) -> list[int]:
        """Parts without a file."""
        return [part for part in self.parts if not self.file(part).exists()]

    def count_rows(self, parts: Iterable[int]) -> int:
        """Inputs in these parts."""
        size = self.settings.rows_per_file
        return sum(min(size, self.inputs.num_rows - part * size) for part in parts)

    def add(self, answers: pa.Table) -> None:
        """Take answers of `ANSWER_SCHEMA`, all of one part; write the part when it is whole.

        Raises:
            WriteError: it cannot be written.
        """
        if not answers.num_rows:
            return
        part = answers.column("number")[0].as_py() // self.settings.rows_per_file
        waiting = self._waiting.setdefault(part, [])
        waiting.append(answers)
        if sum(table.num_rows for table in waiting) == self.count_rows([part]):
            self._write(part, pa.concat_tables(self._waiting.pop(part)))

    def _write(self, part: int, answers: pa.Table) -> None:
        ordered, rows = answers.sort_by("number"), self.rows(part)
        if not ordered.column("number").equals(rows.column("number")):
            raise AssertionError(f"part {part}: the stages answered other rows than they were given")
        table = ordered.drop_columns("number").add_column(0, "path", rows.column("path")).cast(SCHEMA)
        with replacing(self.file(part)) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def count(self) -> "Counts":
        """The whole output's rows by class and by error."""
        classes: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        for part in self.parts:
            if self.file(part).exists():
                table = pq.read_table(self.file(part), columns=["label", "error"], partitioning=None)
                for column, counter in (("label", classes), ("error", errors)):
                    for each in pc.value_counts(table.column(column).drop_null()).to_pylist():
                        counter[each["values"]] += each["counts"]
        return Counts(dict(classes.most_common()), dict(errors.most_common()))


@dataclass(frozen=True)
class Counts:
    """Rows of an output by class, and those with an error by its text; the most frequent first."""

    classes: dict[str, int]
    errors: dict[str, int]


@contextmanager
def open_output(path: Path, settings: BulkSettings) -> Iterator[OutputFolder]:
    """Begin an output, or continue one with the same settings. One process at a time has it.

    Raises:
        InputError: another run writes it, it has other settings, or the inputs cannot be listed.
        WriteError: it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"--output {path}: {(error.strerror or str(error)).lower()}") from error
    try:
        _lock(descriptor, path)
        _prepare(path, settings)
        yield OutputFolder(path, settings)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"--output {path}: another run is writing it; give this one a folder of its own") from None


def _prepare(path: Path, settings: BulkSettings) -> None:
    """The list, then the settings: a list without settings is of a run that was killed before it was whole."""
    for left in path.glob(".*.parquet.*"):  # of a run that was killed while it wrote
        left.unlink()
    if (path / SETTINGS).is_file():
        _compare(path, settings)
        return
    if any(path.glob("*.parquet")):
        raise InputError(f"--output {path}: holds Parquet files of something else; give another folder")
    write_list(settings.input, settings.column, path / LIST)
    write_json(path / SETTINGS, asdict(settings))


def _compare(path: Path, settings: BulkSettings) -> None:
    try:
        before = BulkSettings(**json.loads((path / SETTINGS).read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path / SETTINGS}: damaged; give another --output folder") from error
    for name, old in asdict(before).items():
        new = asdict(settings)[name]
        if new != old:
            thing = name.replace("_", " ")
            raise InputError(f"--output {path}: was begun with {thing} {old}, not {new}; give another folder")
