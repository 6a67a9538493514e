"""What the command line names, to single images: folders, globs, lists, standard input and addresses."""

import glob
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from client.errors import BadImage, UsageError
from client.fetch import fetch
from client.named import Named

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp")
LIST_CHUNK_BYTES = 1 << 16
Image = str | Named


@dataclass(frozen=True)
class Sources:
    """The images that were named, in that order. Iterating walks the folders anew and reads no image.

    Attributes:
        arguments: a path, a glob, `-`, `@LIST`, or an http or https address each.
        recursive: whether folders are walked.
        url_timeout_s: for one address; None when addresses may not be fetched.
    """

    arguments: tuple[str, ...]
    recursive: bool = False
    url_timeout_s: float | None = None
    stdin: BinaryIO = field(default_factory=lambda: sys.stdin.buffer, repr=False)

    @property
    def countable(self) -> bool:
        """Whether iterating twice gives the same."""
        return not {"-", "@-"}.intersection(self.arguments)

    def __iter__(self) -> Iterator[Image]:
        for argument in self.arguments:
            if argument == "-":
                yield Named("-", self.stdin.read)
            elif argument.startswith("@"):
                yield from chain.from_iterable(map(self._expand, _lines(argument[1:], self.stdin)))
            else:
                yield from self._expand(argument)

    def _expand(self, argument: str) -> Iterator[Image]:
        if argument.startswith(("http://", "https://")):
            yield Named(argument, self._fetcher(argument))
        elif self.recursive and Path(argument).is_dir():
            yield from _found(argument)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            for match in sorted(glob.glob(argument, recursive=True)) or [argument]:  # noqa: PTH207
                yield from _found(match) if self.recursive and Path(match).is_dir() else [match]
        else:
            yield argument

    def _fetcher(self, address: str) -> Callable[[], bytes]:
        if self.url_timeout_s is None:
            return _failing("an address, not a file; --allow-urls fetches it")
        timeout_s = self.url_timeout_s
        return lambda: fetch(address, timeout_s)


def _found(folder: str) -> Iterator[Image]:
    """The images in a folder, or one failure that says there are none."""
    images = _walk(folder)
    first = next(images, None)
    if first is None:
        yield Named(folder, _failing(f"no image in this folder; looked for {' '.join(SUFFIXES)}"))
    else:
        yield first
        yield from images


def _walk(folder: str) -> Iterator[Image]:
    """Images of a folder by name, then those of its folders; links to folders are not followed."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.name.lower().endswith(SUFFIXES):
                    files.append(entry.name)
    except OSError as error:
        yield Named(folder, _failing(f"this folder cannot be read: {(error.strerror or str(error)).lower()}"))
    for name in sorted(files):
        yield os.path.join(folder, name)  # noqa: PTH118 - a Path would drop the "./" that was given
    for name in sorted(folders):
        yield from _walk(os.path.join(folder, name))  # noqa: PTH118


def _failing(reason: str) -> Callable[[], bytes]:
    def fail() -> bytes:
        raise BadImage(reason)

    return fail


def _lines(file: str, stdin: BinaryIO) -> Iterator[str]:
    """Paths in a file, one a line, or between NULs as `find -print0` writes them; `-` is standard input.

    Raises:
        UsageError: the list cannot be read.
    """
    try:
        with stdin if file == "-" else Path(file).open("rb") as stream:
            yield from map(os.fsdecode, _split(stream))
    except OSError as error:
        raise UsageError(f"list {file}: {(error.strerror or str(error)).lower()}") from None


def _split(stream: BinaryIO) -> Iterator[bytes]:
    rest = stream.read(LIST_CHUNK_BYTES)
    separator = b"\0" if b"\0" in rest else b"\n"
    while chunk := stream.read(LIST_CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(separator)
        yield from filter(None, (line.rstrip(b"\r") if separator == b"\n" else line for line in whole))
    yield from filter(None, (line.rstrip(b"\r") if separator == b"\n" else line for line in rest.split(separator)))
