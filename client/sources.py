"""What the command line names, as single images: folders, globs, lists, standard input and addresses."""

import asyncio
import glob
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from alexnet_triton.client.errors import BadImage, NotFetched, UsageError, one_line
from alexnet_triton.client.images import LazyImage, RemoteImage
from alexnet_triton.common.files import IMAGE_SUFFIXES
from alexnet_triton.imaging import MAX_BYTES

if TYPE_CHECKING:
    import aiohttp

CHUNK_BYTES = 1 << 16
HEADERS = {"User-Agent": "alexnet-classify", "Accept-Encoding": "identity"}
SCHEMES = "http://", "https://"
REDIRECTS = 5
MOVED = 301, 302, 303, 307, 308
Image = str | LazyImage | RemoteImage


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
        if argument.startswith(SCHEMES):
            yield self._remote(argument)
        elif self.recursive and Path(argument).is_dir():
            yield from _found(argument)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            for match in sorted(glob.glob(argument, recursive=True)) or [argument]:  # noqa: PTH207
                yield from _found(match) if self.recursive and Path(match).is_dir() else [match]
        else:
            yield argument

    def _remote(self, address: str) -> Image:
        if self.url_timeout_s is None:
            return LazyImage(address, _failing("an address, not a file; --allow-urls fetches it"))
        return RemoteImage(address, partial(fetch, address, self.url_timeout_s))


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


async def fetch(address: str, timeout_s: float) -> bytes:
    """Download an image of at most `MAX_BYTES`, without the headers of the run: its keys are for the servers alone.

    Args:
        address: http or https; at most `REDIRECTS` redirections to other such addresses are followed.
        timeout_s: for all of it, from the look-up of the host to the last byte.

    Raises:
        NotFetched: it did not arrive in time, or its host was not reached or in trouble.
        BadImage: it is missing, too large, or no address.
    """
    import aiohttp  # takes a while, and most runs fetch nothing

    from alexnet_triton.client.http_transport import translate

    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with aiohttp.ClientSession(headers=HEADERS, timeout=timeout, auto_decompress=False) as session:
            return await asyncio.wait_for(_download(session, address), timeout_s)
    except ValueError as error:  # InvalidURL among them
        raise BadImage(f"cannot be fetched: {one_line(str(error))}") from None
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        raise NotFetched(f"cannot be fetched: {translate(error, '', '', timeout_s).detail}") from None


async def _download(session: "aiohttp.ClientSession", address: str) -> bytes:
    for _ in range(REDIRECTS + 1):
        async with session.get(address, proxy=_proxy(address), allow_redirects=False) as response:
            if response.status not in MOVED:
                return await _content(response)
            address = urljoin(address, response.headers.get("Location", ""))
        if not address.startswith(SCHEMES):
            raise BadImage(f"redirected to {one_line(address)}, which is no http or https address")
    raise BadImage(f"redirected more than {REDIRECTS} times")


async def _content(response: "aiohttp.ClientResponse") -> bytes:
    if not response.ok:
        transient = response.status in (408, 425, 429) or response.status >= 500
        raise (NotFetched if transient else BadImage)(f"HTTP status {response.status}")
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > MAX_BYTES:
            raise BadImage(f"more than the {MAX_BYTES:,} bytes allowed")
    return bytes(content)


def _proxy(address: str) -> str | None:
    """The proxy that the environment names for an address."""
    parts = urlsplit(address)
    proxy = None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
