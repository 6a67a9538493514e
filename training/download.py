"""Files from the network, taken only where they are the ones expected."""

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from alexnet_triton.training.errors import DataError
from alexnet_triton.training.log import progress_bar

TIMEOUT_S = 60
BLOCK_BYTES = 2**18


@dataclass(frozen=True)
class Published:
    """A file at an address, known by the SHA-256 and the length of its content."""

    address: str
    sha256: str
    length: int

    @property
    def name(self) -> str:
        return self.address.rsplit("/", 1)[-1]


def fetch(published: Published, folder: Path) -> Path:
    """The file in `folder`, downloaded where it isn't there yet.

    Raises:
        DataError: it cannot be had, or its content is another; nothing is left of it.
    """
    path = folder / published.name
    if path.is_file():
        check(path, published.sha256)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    arriving = folder / f".{published.name}.{os.getpid()}"
    try:
        _download(published, arriving)
        check(arriving, published.sha256)
        return arriving.replace(path)
    except (OSError, urllib.error.URLError) as error:
        raise DataError(f"{published.address}: cannot be fetched ({error}); put the file into {folder}") from error
    finally:
        arriving.unlink(missing_ok=True)


def check(path: Path, sha256: str) -> None:
    """Raises: DataError: the file's content is another."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise DataError(f"{path}: not the published file (its SHA-256 is {digest.hexdigest()[:12]}...); remove it")


def _download(published: Published, to: Path) -> None:
    """Never more than the known length."""
    with (
        urllib.request.urlopen(published.address, timeout=TIMEOUT_S) as response,
        to.open("wb") as file,
        progress_bar() as progress,
    ):
        task = progress.add_task("fetching", total=published.length, note=published.name)
        left = published.length
        while left and (block := response.read(min(BLOCK_BYTES, left))):
            file.write(block)
            left -= len(block)
            progress.advance(task, len(block))
