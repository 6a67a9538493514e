"""`--save-annotated FOLDER`: each image with its classes drawn under it, and a page of all of them, index.html."""

import asyncio
import base64
import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from PIL import Image as Pillow

from alexnet_triton.client.errors import UsageError
from alexnet_triton.client.images import LazyImage, RemoteImage, read
from alexnet_triton.client.output import error_text
from alexnet_triton.client.protocol import Failure, Result
from alexnet_triton.client.sources import Image
from alexnet_triton.common.files import WriteError, write_bytes
from alexnet_triton.imaging import ImageError, open_image
from alexnet_triton.imaging.sheet import (
    MOST_SIDE,
    THUMBNAIL_SIDE,
    Entry,
    annotate,
    reduced,
    to_jpeg,
    write_page,
)

PAGE, ENTRIES = "index.html", "entries.jsonl"
MOST_ENTRIES = 10_000  # on a page; browsers are slow with more. Every image has its picture all the same.


class AnnotatedFolder:
    """The folder of one run: pictures as the answers come, the page at the end of the block, however it ends.

    `watch` and `add` go together: results are added in the order of the images.
    """

    def __init__(self, folder: str, resume: bool) -> None:
        """Make the folder; `resume` keeps what an earlier run put on the page.

        Raises:
            UsageError: it cannot be written, or holds a page of something else.
        """
        self._folder = Path(folder)
        if (self._folder / PAGE).exists() and not (self._folder / ENTRIES).exists():
            raise UsageError(f"--save-annotated {folder}: holds another {PAGE}; give another folder")
        with _usage_errors(folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._entries = EntryFile(self._folder / ENTRIES, resume)
        self._waiting: deque[_Copy] = deque()  # of images that are on their way
        self._lock = threading.Lock()  # an interrupted run may end while a thread still adds

    def watch(self, images: Iterable[Image]) -> Iterator[Image]:
        """The same images, each of which leaves a reduced copy here when it is read."""
        for image in images:
            copy = _Copy()
            self._waiting.append(copy)
            yield _watched(image, copy)

    def add(self, result: Result) -> None:
        """Write the picture of the next image that `watch` gave.

        Raises:
            UsageError: it cannot be written.
        """
        copy, title = self._waiting.popleft(), result.path or ""
        with self._lock, _usage_errors(str(self._folder)):
            if isinstance(result, Failure):
                self._entries.add(Entry(title, error=error_text(result)))
                return
            classes, picture, thumbnail = [(each.label, each.probability) for each in result.top], "", b""
            if image := copy.open():
                picture, thumbnail = picture_name(title), to_jpeg(reduced(image, THUMBNAIL_SIDE))
                write_bytes(self._folder / picture, to_jpeg(annotate(image, classes), quality=90))
            self._entries.add(Entry(title, classes, picture=picture, thumbnail=thumbnail))

    def __enter__(self) -> "AnnotatedFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shown, seen = len(self._entries), self._entries.seen
        heading = f"{shown:,} images" if shown == seen else f"The first {shown:,} of {seen:,} images"
        try:
            with self._lock, _usage_errors(str(self._folder)):
                write_page(self._folder / PAGE, heading, self._entries)
        except UsageError:
            if kind is None:  # else the first error is told
                raise
        finally:
            self._entries.close()


@contextmanager
def _usage_errors(folder: str) -> Iterator[None]:
    try:
        yield
    except WriteError as error:
        raise UsageError(f"--save-annotated: {error}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"--save-annotated {folder}: {reason}; give a folder that can be written") from None


def refuse_folder_within(folder: str, walked: Iterable[str]) -> None:
    """Refuse a folder whose pictures --recursive would classify the next time.

    Raises:
        UsageError: it lies in one of the `walked` folders.
    """
    target = Path(folder).resolve()
    for each in walked:
        if Path(each).is_dir() and target.is_relative_to(Path(each).resolve()):
            raise UsageError(f"--save-annotated {folder}: lies in {each}, which --recursive walks; give another folder")


def picture_name(path: str) -> str:
    """A file name in ASCII letters for an image's path, another one for every path."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(path).stem).strip("-")[:40] or "image"
    return f"{stem}-{hashlib.blake2b(path.encode('utf-8', 'surrogatepass'), digest_size=6).hexdigest()}.jpg"


# ---- the images on their way


@dataclass
class _Copy:
    """A reduced copy of an image, as a JPEG file; empty until the image is read, and if it is no image."""

    jpeg: bytes = b""

    def take(self, encoded: bytes) -> bytes:
        """Keep a reduced copy of an image file; returns the file."""
        with suppress(ImageError):  # the classifier says so
            self.jpeg = to_jpeg(reduced(open_image(encoded, MOST_SIDE)), quality=90)
        return encoded

    def open(self) -> Pillow.Image | None:
        return open_image(self.jpeg, MOST_SIDE) if self.jpeg else None


def _watched(image: Image, copy: _Copy) -> Image:
    if isinstance(image, RemoteImage):
        fetch = image.fetch

        async def fetch_and_copy() -> bytes:
            return await asyncio.to_thread(copy.take, await fetch())

        return RemoteImage(image.path, fetch_and_copy)
    path, load = (image.path, image.read) if isinstance(image, LazyImage) else (image, _reader(image))
    return LazyImage(path, lambda: copy.take(load()))


def _reader(path: str) -> Callable[[], bytes]:
    return lambda: read(path)


# ---- the page's entries


class EntryFile(Sequence[Entry]):
    """Entries in a file, a JSON object a line; of each image the last one counts. Memory holds their places alone."""

    def __init__(self, path: Path, resume: bool) -> None:
        """Empty the file; `resume` keeps its whole lines.

        Raises:
            UsageError: it holds something else.
            OSError: it cannot be written.
        """
        self._stream = path.open("r+b" if resume and path.exists() else "w+b")
        self._offsets: list[int] = []
        self._numbers: dict[str, int] = {}  # by title
        self.seen = 0  # images, with those for which there is no room
        try:
            self._read()
        except (ValueError, TypeError, KeyError):
            self._stream.close()
            raise UsageError(f"{path}: no entries of a page; remove it, or give another folder") from None

    def _read(self) -> None:
        end = 0
        for line in self._stream:
            if not line.endswith(b"\n"):  # a killed run left half of it
                break
            self._place(_parse(line).title, end)
            end += len(line)
        self._stream.truncate(end)

    def add(self, entry: Entry) -> None:
        """Add an entry, in place of an earlier one of the same image.

        Raises:
            OSError: it cannot be written.
        """
        offset = self._stream.seek(0, 2)
        if self._place(entry.title, offset):
            fields = asdict(entry) | {"thumbnail": base64.b64encode(entry.thumbnail).decode()}
            self._stream.write(json.dumps(fields).encode() + b"\n")
            self._stream.flush()

    def _place(self, title: str, offset: int) -> bool:
        if title in self._numbers:
            self._offsets[self._numbers[title]] = offset
            return True
        self.seen += 1
        if len(self._offsets) >= MOST_ENTRIES:
            return False
        self._numbers[title] = len(self._offsets)
        self._offsets.append(offset)
        return True

    def close(self) -> None:
        self._stream.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, number: int) -> Entry:  # type: ignore[override]
        self._stream.seek(self._offsets[number])
        return _parse(self._stream.readline())


def _parse(line: bytes) -> Entry:
    fields = json.loads(line)
    classes = [(str(label), float(probability)) for label, probability in fields["classes"]]
    return Entry(**fields | {"classes": classes, "thumbnail": base64.b64decode(fields["thumbnail"])})
