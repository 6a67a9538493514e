"""From what the caller has of an image to the bytes that are sent."""

import io
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from alexnet_triton.client.errors import BadImage, UsageError
from alexnet_triton.client.protocol import Signature
from alexnet_triton.imaging import MAX_BYTES, ImageError, center_box, decode, find_format, open_image, resample


@dataclass(frozen=True, slots=True)
class LazyImage:
    """An image that is read when it is sent. `read` returns the bytes of an image file or raises BadImage."""

    path: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """An image that the event loop fetches. `fetch` returns the bytes of an image file or raises BadImage."""

    path: str
    fetch: Callable[[], Awaitable[bytes]]


Source = Union[str, "os.PathLike[str]", bytes, NDArray[np.uint8], Image.Image, LazyImage, RemoteImage]


def path_of(source: Source) -> str | None:
    """The path as it was given, None for an image in memory."""
    if isinstance(source, (LazyImage, RemoteImage)):
        return source.path
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else None


def payload(source: Source, signature: Signature) -> bytes:
    """One image as the model takes it: an image file, or uint8 [size, size, 3].

    A path is read; bytes are an image file; an array uint8 [H, W, 3] or [H, W] and a Pillow image
    are pictures of any size, which get the same scaling and cropping as the file would.

    Raises:
        BadImage: it cannot be read, or is not an image.
        UsageError: a value of another type.
    """
    try:
        if signature.kind == "encoded":
            encoded = file_bytes(source)
            find_format(encoded)  # refuse here what the server would refuse after it was sent
            return encoded
        return pixels(source, signature.size).tobytes()
    except ImageError as error:
        raise BadImage(str(error)) from None


def file_bytes(source: Source) -> bytes:
    """The bytes of an image file; an array or a Pillow image becomes a PNG.

    Raises:
        BadImage, UsageError: as `payload`.
    """
    if isinstance(source, (str, os.PathLike)):
        return read(os.fspath(source))
    if isinstance(source, LazyImage):
        return source.read()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    buffer = io.BytesIO()
    picture(source).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def pixels(source: Source, size: int) -> NDArray[np.uint8]:
    """The image as uint8 [size, size, 3].

    Raises:
        BadImage, UsageError: as `payload`.
        ImageError: it is not an image.
    """
    if isinstance(source, (np.ndarray, Image.Image)):
        image = picture(source)
        if image.mode not in ("L", "RGB"):
            image = open_image(file_bytes(image))
        return resample(image, center_box(*image.size, size), size)
    return decode(file_bytes(source), size)


def picture(source: Source) -> Image.Image:
    """An array or a Pillow image as an upright Pillow image.

    Raises:
        UsageError: another type, or an array of another shape or dtype.
    """
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source)
    if not isinstance(source, np.ndarray):
        raise UsageError(f"{type(source).__name__} is no image: give a path, bytes, an array or a Pillow image")
    if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,)) or 0 in source.shape:
        raise UsageError(f"array {source.dtype} {list(source.shape)} is no image: give uint8 [H, W, 3] or [H, W]")
    return Image.fromarray(source)


def read(path: str) -> bytes:
    """Read a regular file of at most `MAX_BYTES`.

    Raises:
        BadImage: it is missing, unreadable, too large, or a folder, a device or a pipe.
    """
    try:
        status = Path(path).stat()  # before it is opened: opening a device may do something
        if not stat.S_ISREG(status.st_mode):
            raise BadImage(_KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file"))
        if status.st_size > MAX_BYTES:
            raise BadImage(f"{status.st_size:,} bytes, more than the {MAX_BYTES:,} allowed")
        with Path(path).open("rb", buffering=0) as file:
            return file.read(MAX_BYTES + 1)
    except ValueError as error:
        raise BadImage(f"not a file name: {error}") from None
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except OSError as error:
        raise BadImage((error.strerror or str(error)).lower()) from None


def blank(signature: Signature) -> bytes:
    """A picture that every model can classify, to see whether a model classifies at all."""
    return payload(np.zeros((1, 1, 3), np.uint8), signature)


_KINDS = {
    stat.S_IFDIR: "a folder, not an image; --recursive takes the images in it",
    stat.S_IFIFO: "a pipe, not a file; give it on standard input with -",
    stat.S_IFCHR: "a device, not an image",
    stat.S_IFBLK: "a device, not an image",
    stat.S_IFSOCK: "a socket, not an image",
}
