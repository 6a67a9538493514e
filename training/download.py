"""Published files, downloaded once and checked against their SHA-256."""

import urllib.request
from dataclasses import dataclass
from pathlib import Path

from alexnet_triton.common import files
from alexnet_triton.training.errors import DataError
from alexnet_triton.training.log import progress_bar

TIMEOUT_S = 60
BLOCK_BYTES = 2**18


@dataclass(frozen=True)
class Published:
    """A file at an address, with the SHA-256 and the length in bytes of its content."""

    address: str
    sha256: str
    length: int

    @property
    def name(self) -> str:
        return self.address.rsplit("/", 1)[-1]


def fetch(published: Published, folder: Path) -> Path:
    """The file in `folder`, downloaded if it is not there yet.

    Raises:
        DataError: it cannot be downloaded, or its content is not the published one; nothing is left in `folder`.
        WriteError: it cannot be written.
    """
    path = folder / published.name
    if path.is_file():
        _check(path, published, path)
        return path
    with files.replacing(path) as temporary:
        try:
            _download(published, temporary)
        except OSError as error:  # a URLError too
            raise DataError(f"{published.address}: cannot be fetched ({error}); put the file into {folder}") from error
        _check(temporary, published, published.address)
    return path


def _check(path: Path, published: Published, source: object) -> None:
    found = files.sha256(path)
    if found != published.sha256:
        raise DataError(f"{source}: not the published file (its SHA-256 is {found[:12]}...); replace it")


def _download(published: Published, path: Path) -> None:
    """Write what the address answers, up to the published length."""
    with (
        urllib.request.urlopen(published.address, timeout=TIMEOUT_S) as response,
        path.open("wb") as file,
        progress_bar() as progress,
    ):
        task = progress.add_task("fetching", total=published.length, note=published.name)
        left = published.length
        while left and (block := response.read(min(BLOCK_BYTES, left))):
            file.write(block)
            left -= len(block)
            progress.advance(task, len(block))
