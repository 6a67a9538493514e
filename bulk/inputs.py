"""What is to be classified: a folder, a glob or Parquet files, here or in an object store, listed once and then read.

The list is an Arrow file with a row an input. A reader maps it into memory, so that ten million inputs cost no memory.
"""

import fnmatch
import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from alexnet_triton.client.errors import BadImage
from alexnet_triton.client.images import read as read_file
from alexnet_triton.common.command import USAGE, UserError
from alexnet_triton.common.files import is_image, replacing
from alexnet_triton.imaging import MAX_BYTES

COLUMNS = ("path", "bytes", "image")  # of a Parquet input, where --column names none; the first that is there
# path: as it stands in the output. file, row: where the bytes are, if they are in a Parquet file.
LIST_SCHEMA = pa.schema([("path", pa.string()), ("file", pa.string()), ("row", pa.int64())])
_LIST_ROWS = 65536  # written at a time
READERS = 16  # files of an object store that an actor reads at once: each takes tens of milliseconds
S3_ENDPOINT = "AWS_ENDPOINT_URL"
_SCHEMES = ("s3://", "gs://")
_WILD = "*?["

Row = tuple[str, str | None, int | None]


class BulkError(UserError):
    """A run that stopped; the message says why and what to do."""


class InputError(BulkError):
    """An input, an option or an output folder that cannot be used."""

    exit_code = USAGE


def write_list(argument: str, column: str | None, target: Path) -> None:
    """Write the list of all inputs that `argument` names to `target`, in one step.

    Raises:
        InputError: there is none, or a Parquet file is damaged or has no such column.
        WriteError: it cannot be written.
    """
    rows = find_inputs(argument, column)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{argument}: no images: give a folder with images, a glob, or Parquet files")
    with (
        replacing(target) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, LIST_SCHEMA) as out,
    ):
        while batch := [*([first] if first else []), *islice(rows, _LIST_ROWS)]:
            first = None
            columns = (
                pa.array(values, each.type) for values, each in zip(zip(*batch, strict=True), LIST_SCHEMA, strict=True)
            )
            out.write_batch(pa.record_batch(list(columns), schema=LIST_SCHEMA))


def read_list(path: Path) -> pa.Table:
    """The list of inputs, columns of `LIST_SCHEMA`; its memory is the file's pages.

    Raises:
        InputError: it is damaged.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: damaged ({_first_line(error)}): give another --output folder") from error


def find_inputs(argument: str, column: str | None) -> Iterator[Row]:
    """Every input in a fixed order: images of folders, and rows of Parquet files.

    Raises:
        InputError: as `write_list`.
    """
    try:
        for path in _expand(argument):
            if path.endswith((".parquet", ".pq")):
                yield from _parquet_rows(path, column)
            else:
                yield path, None, None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{argument}: cannot be listed: {_first_line(error)}") from error


def _expand(argument: str) -> Iterator[str]:
    """Paths of files. A folder stands for the images and Parquet files below it, a glob for what it matches."""
    if argument.startswith(_SCHEMES):
        yield from _expand_remote(argument)
    elif Path(argument).is_dir():
        yield from _walk(argument)
    elif Path(argument).is_file():
        yield argument
    elif glob.has_magic(argument):
        yield from (path for path in sorted(_match(argument)) if Path(path).is_file())
    else:
        raise InputError(f"{argument}: no such file or folder")


def _match(pattern: str) -> list[str]:
    return glob.glob(pattern, recursive=True)  # noqa: PTH207 - an absolute pattern too


def _walk(folder: str) -> Iterator[str]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _walk(entry.path)
        elif _is_input(entry.name):
            yield entry.path


def _is_input(name: str) -> bool:
    return not Path(name).name.startswith((".", "_")) and (is_image(Path(name)) or name.endswith((".parquet", ".pq")))


def _expand_remote(address: str) -> Iterator[str]:
    wild = min((address.find(each) for each in _WILD if each in address), default=len(address))
    system, _ = open_filesystem(address)
    scheme, _, place = address.partition("://")
    if not any(each in address for each in _WILD):
        information = system.get_file_info(place.rstrip("/"))
        if information.is_file:
            yield address
            return
        if information.type == pa.fs.FileType.NotFound:
            raise InputError(f"{address}: no such file or folder")
    start = address[:wild].partition("://")[2].rpartition("/")[0] if wild < len(address) else place.rstrip("/")
    found = system.get_file_info(pa.fs.FileSelector(start, recursive=True, allow_not_found=True))
    for path in sorted(each.path for each in found if each.is_file):
        if fnmatch.fnmatchcase(path, place) if wild < len(address) else _is_input(path):
            yield f"{scheme}://{path}"


def open_filesystem(address: str) -> tuple[pa.fs.FileSystem, str]:
    """The file system of a path or address and the path in it.

    S3 takes its credentials and AWS_ENDPOINT_URL from the environment, GCS its own.

    Raises:
        OSError: the store refuses or is not reached.
    """
    if not address.startswith(_SCHEMES):
        return pa.fs.LocalFileSystem(), address
    scheme, _, place = address.partition("://")
    return _store(scheme), place


@cache
def _store(scheme: str) -> pa.fs.FileSystem:
    """One a process: it keeps its connections."""
    return (
        pa.fs.GcsFileSystem() if scheme == "gs" else pa.fs.S3FileSystem(endpoint_override=os.environ.get(S3_ENDPOINT))
    )


def _parquet_rows(path: str, column: str | None) -> Iterator[Row]:
    """The rows of a Parquet file: a column of paths is read here, one of bytes when its turn comes."""
    system, place = open_filesystem(path)
    try:
        with pq.ParquetFile(place, filesystem=system) as file:
            chosen = _choose_column(path, file.schema_arrow, column)
            kind = file.schema_arrow.field(chosen).type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                yield from _byte_rows(path, file, chosen)
                return
            for batch in file.iter_batches(columns=[chosen]):
                yield from ((_beside(path, name), None, None) for name in batch.column(0).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged Parquet file ({_first_line(error)}): mend it or leave it out") from error


def _beside(file: str, name: str | None) -> str:
    """A path of a column; a relative one counts from the folder of the Parquet file."""
    return name if name and "://" in name else os.path.join(os.path.dirname(file), name or "")  # noqa: PTH118, PTH120


def _byte_rows(path: str, file: pq.ParquetFile, chosen: str) -> Iterator[Row]:
    if "path" in file.schema_arrow.names and chosen != "path":
        names = (name for batch in file.iter_batches(columns=["path"]) for name in batch.column(0).to_pylist())
        yield from ((str(name), f"{path}\n{chosen}", row) for row, name in enumerate(names))
    else:
        yield from ((f"{path}#{row}", f"{path}\n{chosen}", row) for row in range(file.metadata.num_rows))


def _choose_column(path: str, schema: pa.Schema, column: str | None) -> str:
    usable = [each.name for each in schema if pa.types.is_string(each.type) or pa.types.is_binary(each.type)]
    usable += [
        each.name for each in schema if pa.types.is_large_string(each.type) or pa.types.is_large_binary(each.type)
    ]
    chosen = column or next((each for each in COLUMNS[1:] + COLUMNS[:1] if each in usable), None)
    if chosen in usable:
        return str(chosen)
    has = ", ".join(usable) or "none"
    raise InputError(f"{path}: no column {column or ' or '.join(COLUMNS)} of paths or bytes: --column of these: {has}")


# ---- reading, where the work is done


def read_inputs(rows: pa.Table, folder: str) -> Iterator[bytes | str]:
    """The bytes of each input of a part of the list, in order; a string instead says why it cannot be read.

    Relative paths count from `folder`, because processes of a cluster work in folders of their own.
    """
    paths, files, numbers = (rows.column(name).to_pylist() for name in ("path", "file", "row"))
    start = 0
    while start < len(paths):
        end = start + 1
        while end < len(paths) and files[end] == files[start]:
            end += 1
        if files[start] is None:
            yield from _read_files([_beside(f"{folder}/", path) for path in paths[start:end]])
        else:
            yield from _read_rows(_beside(f"{folder}/", files[start]), numbers[start], numbers[end - 1] + 1)
        start = end


def _read_files(paths: Sequence[str]) -> Iterator[bytes | str]:
    """Those of an object store are read ahead, `READERS` at once."""
    if not any(path.startswith(_SCHEMES) for path in paths):
        yield from map(read_one, paths)
        return
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[Future[bytes | str]] = deque()
        for path in paths:
            ahead.append(pool.submit(read_one, path))
            if len(ahead) > READERS:
                yield ahead.popleft().result()
        yield from (each.result() for each in ahead)


def read_one(path: str) -> bytes | str:
    """The bytes of an image file, here or in an object store, or why it cannot be read."""
    try:
        if not path.startswith(_SCHEMES):
            return read_file(path)
        system, place = open_filesystem(path)
        with system.open_input_file(place) as file:
            return file.read(MAX_BYTES + 1)
    except BadImage as error:
        return str(error)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return _first_line(error)


def _read_rows(file: str, start: int, stop: int) -> Iterator[bytes | str]:
    """Rows of a column of bytes. Where the file is damaged, the rest of them are errors."""
    path, chosen = file.split("\n")
    given = 0
    try:
        for value in _stream_column(path, chosen, start, stop):
            yield value if value is not None else "no bytes"
            given += 1
    except (pa.ArrowException, OSError) as error:
        reason = f"damaged Parquet file: {_first_line(error)}"
        yield from (reason for _ in range(stop - start - given))


def _stream_column(path: str, chosen: str, start: int, stop: int) -> Iterator[bytes | None]:
    system, place = open_filesystem(path)
    with pq.ParquetFile(place, filesystem=system) as file:
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if first < stop and first + count > start:
                values = _group_values(file, group, chosen)
                yield from islice(values, max(0, start - first), min(count, stop - first))
            first += count


def _group_values(file: pq.ParquetFile, group: int, chosen: str) -> Iterator[bytes | None]:
    for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[chosen]):
        yield from (value.as_py() for value in batch.column(0))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
