"""CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"), from its binary archive."""

import tarfile
import zlib
from pathlib import Path

import numpy as np

from alexnet_triton.training.download import Published, fetch
from alexnet_triton.training.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
ARCHIVE = Published(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    170_052_171,
)
MEMBERS = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
PIXELS = 3 * 32 * 32
MEMBER_BYTES = 32 * 2**20  # a member has 31 MB


def locate(folder: Path | None, fetched: Path) -> Path:
    """The checked archive: from `folder` if one is given, else from `fetched`, where it is downloaded once.

    Raises:
        DataError: it is not available, or its content is not CIFAR-10's.
    """
    if folder is not None and not (folder / ARCHIVE.name).is_file():
        raise DataError(f"{folder}: no {ARCHIVE.name} in it; put it there, from {PAGE}")
    return fetch(ARCHIVE, folder or fetched)


def load(archive: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read `train` (50,000) or `test` (10,000): images uint8 [N, 32, 32, 3], labels int64 [N].

    Raises:
        DataError: the archive is damaged or laid out in another way.
    """
    try:
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            files = [tar.extractfile(members[name]) for name in MEMBERS[split]]
            content = b"".join(file.read(MEMBER_BYTES) for file in files if file)
        rows = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)  # a label, then 3 x 32 x 32 pixels
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{archive}: damaged or not CIFAR-10's ({error}); replace it") from error
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), rows[:, 0].astype(np.int64)
