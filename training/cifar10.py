"""CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images") out of its own archives.

The binary version is fetched; the Python version is read as well where it is given.
"""

import codecs
import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.training.download import Published, check, fetch
from alexnet_triton.training.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
ARCHIVES = {
    BINARY: Published(
        f"https://www.cs.toronto.edu/~kriz/{BINARY}",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        170_052_171,
    ),
    PYTHON: Published(
        f"https://www.cs.toronto.edu/~kriz/{PYTHON}",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        170_498_071,
    ),
}
PARTS = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
PIXELS = 3 * 32 * 32
MEMBER_BYTES = 32 * 2**20  # a part is 31 MB in either version


def locate(folder: Path | None, fetched: Path) -> Path:
    """One of the two archives, checked: in `folder` where one is given, else in `fetched`, else fetched.

    Raises:
        DataError: it cannot be had, or is not CIFAR-10's.
    """
    found = next((path for name in ARCHIVES if (path := (folder or fetched) / name).is_file()), None)
    if found:
        check(found, ARCHIVES[found.name].sha256)
        return found
    if folder is not None:
        raise DataError(f"{folder}: neither {BINARY} nor {PYTHON} in it; put one there, from {PAGE}")
    return fetch(ARCHIVES[BINARY], fetched)


def load(archive: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read `train` (50,000) or `test` (10,000): images uint8 [N, 32, 32, 3], labels int64 [N].

    Raises:
        DataError: the archive is damaged or laid out otherwise.
    """
    read = _read_binary if archive.name == BINARY else _read_python
    suffix = ".bin" if archive.name == BINARY else ""
    try:
        with tarfile.open(archive) as tar:
            parts = {Path(member.name).name: member for member in tar if member.isfile()}
            blocks = [tar.extractfile(parts[name + suffix]) for name in PARTS[split]]
            read_parts = [read(block.read(MEMBER_BYTES)) for block in blocks if block]
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error, pickle.UnpicklingError) as error:
        raise DataError(f"{archive}: damaged or not CIFAR-10's ({error}); replace it") from error
    images = np.concatenate([images for images, _ in read_parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.concatenate([labels for _, labels in read_parts])


def _read_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one label and 3 x 32 x 32 pixels."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _read_python(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    values = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    return values[b"data"].reshape(-1, PIXELS), np.array(values[b"labels"], np.int64)


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _Unpickler(pickle.Unpickler):
    """Takes arrays and nothing else: an unpickled name could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} in it")
        return ALLOWED[module, name]
