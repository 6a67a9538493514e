"""What the command line names, as single images: folders, globs, lists, standard input and addresses."""

import glob
import http.client
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from alexnet_triton.client.errors import BadImage, UsageError
from alexnet_triton.client.images import LazyImage
from alexnet_triton.common.files import IMAGE_SUFFIXES
from alexnet_triton.imaging import MAX_BYTES

CHUNK_BYTES = 1 << 16
AGENT = "alexnet-classify"
Image = str | LazyImage


@dataclass(frozen=True)
class Sources:
    """The images that were named, in that order. Each iteration walks the folders again; it reads no image.

    Attributes:
        arguments: each a path, a glob, `-`, `@LIST`, or an http or https address.
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
                yield LazyImage("-", self.stdin.read)
            elif argument.startswith("@"):
                yield from chain.from_iterable(map(self._expand, _lines(argument[1:], self.stdin)))
            else:
                yield from self._expand(argument)

    def _expand(self, argument: str) -> Iterator[Image]:
        if argument.startswith(("http://", "https://")):
            yield LazyImage(argument, self._fetcher(argument))
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
        yield LazyImage(folder, _failing(f"no image in this folder; looked for {' '.join(IMAGE_SUFFIXES)}"))
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
                elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                    files.append(entry.name)
    except OSError as error:
        yield LazyImage(folder, _failing(f"this folder cannot be read: {(error.strerror or str(error)).lower()}"))
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
    rest = stream.read(CHUNK_BYTES)
    separator, ending = (b"\0", b"") if b"\0" in rest else (b"\n", b"\r")
    while chunk := stream.read(CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(separator)
        yield from filter(None, (line.rstrip(ending) for line in whole))
    yield from filter(None, (line.rstrip(ending) for line in rest.split(separator)))


def fetch(address: str, timeout_s: float) -> bytes:
    """Download an image of at most `MAX_BYTES`; follows at most ten redirections, only to http and https.

    Raises:
        BadImage: it is missing, too large, or did not arrive in time.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        request = urllib.request.Request(address, headers={"User-Agent": AGENT})
        with _opener().open(request, timeout=timeout_s) as response:
            return _read(response, deadline_s, timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        raise BadImage(f"HTTP status {error.code}") from None
    except urllib.error.URLError as error:
        raise BadImage(f"cannot be fetched: {_reason(error.reason)}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BadImage(f"cannot be fetched: {_reason(error)}") from None


def _read(response: http.client.HTTPResponse, deadline_s: float, timeout_s: float) -> bytes:
    content = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        content += chunk
        if len(content) > MAX_BYTES:
            raise BadImage(f"more than the {MAX_BYTES:,} bytes allowed")
        if time.monotonic() > deadline_s:
            raise BadImage(f"not fetched within {timeout_s:g} s")
    if response.length:
        raise BadImage("cut off: the connection ended before the image did")
    return bytes(content)


def _opener() -> urllib.request.OpenerDirector:
    """An opener without the handlers for file: and ftp:, to which an address could be redirected."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error or type(error).__name__).lower()
