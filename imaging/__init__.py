"""Bytes of an image to uint8 pixels: the one definition that training, server and client share.

It says which files are refused, where an image is cropped and how it is scaled.
"""

import io
import threading
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

# Readers by the first bytes of a file. Pillow's own `Image.open` would warn of large images before they are refused.
FORMATS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
}
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 25_000_000  # what a caller may have decoded: a 12 KB PNG can be of 100 megapixels, and takes a second
SHORT_SIDE = 256  # the 2012 paper, section 2: shorter side to 256, then the central patch

Box = tuple[float, float, float, float]  # left, upper, right, lower, in source pixels


class ImageError(ValueError):
    """These bytes cannot be classified; the message says why, in one line."""


def decode(encoded: bytes, size: int) -> np.ndarray:
    """Decode an image file to uint8 [size, size, 3], RGB.

    It applies EXIF rotation, takes the first frame, lays transparency on white, scales the short side to 256 and
    crops the centre. JPEGs are decoded at a reduced scale that leaves the short side at 256 pixels or more.

    Raises:
        ImageError: empty, not a JPEG, PNG, WebP, GIF or BMP, damaged, or above `MAX_BYTES` or `MAX_PIXELS`.
    """
    return render(identify(encoded), size)


def render(identified: ImageFile, size: int) -> np.ndarray:
    """What `decode` does once the header is read.

    Raises:
        ImageError: it is damaged.
    """
    image = _load(identified, SHORT_SIDE)
    return resample(image, center_box(*image.size, size), size)


def open_image(encoded: bytes, short_side: int = SHORT_SIDE) -> Image.Image:
    """Decode an image file to a Pillow image in mode L or RGB, upright.

    Raises:
        ImageError: as `decode`.
    """
    return _load(identify(encoded), short_side)


def _load(image: ImageFile, short_side: int) -> Image.Image:
    try:
        if image.format == "JPEG":
            scale = short_side / min(image.size)
            image.draft(None, (round(image.width * scale), round(image.height * scale)))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's readers raise whatever their bytes lead to: struct.error, KeyError, TypeError
        raise ImageError(f"damaged {image.format} image: {_first_line(error)}") from error


def identify(encoded: bytes) -> ImageFile:
    """Read the header alone, so that an image too large is refused before it is decoded.

    Raises:
        ImageError: as `decode`, but damage after the header goes unnoticed.
    """
    reader = find_format(encoded)
    try:
        image = reader(io.BytesIO(encoded))
    except Exception as error:  # as in `_load`
        raise ImageError(f"damaged image: {_first_line(error)}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"image of {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed")
    return image


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def find_format(encoded: bytes) -> type[ImageFile]:
    """Pillow's reader of an image file, by the file's first bytes; nothing else of it is looked at.

    Raises:
        ImageError: empty, above `MAX_BYTES`, or not a JPEG, PNG, WebP, GIF or BMP.
    """
    if not encoded:
        raise ImageError("empty file, not an image")
    if len(encoded) > MAX_BYTES:
        raise ImageError(f"{len(encoded):,} bytes, more than the {MAX_BYTES:,} allowed")
    reader = next((FORMATS[magic] for magic in FORMATS if encoded.startswith(magic)), None)
    if reader is None:
        raise ImageError("not a JPEG, PNG, WebP, GIF or BMP image")
    return reader


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to L or RGB. 16 bits a channel become 8, transparency becomes white."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def center_box(width: int, height: int, size: int) -> Box:
    """The box of a width x height image that the central size x size crop covers.

    A crop of `size` pixels after scaling the short side to `SHORT_SIDE` covers `short * size / SHORT_SIDE` source
    pixels, so one resampling does both.
    """
    side = min(width, height) * size / SHORT_SIDE
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def resample(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """Scale `box` of an image in mode L or RGB to uint8 [size, size, 3], RGB.

    Bilinear with antialiasing, like Pillow's and torchvision's `resize`. A grey image is scaled as one channel and
    repeated: the same bytes for a third of the work. cykooz-resizer, where it is installed, takes a third of Pillow's
    time, because it uses vector instructions; its values differ by at most 1 of 255.
    """
    scaler = _vector_scaler() or _scale_with_pillow
    pixels = np.asarray(scaler(image, box, size))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels


def _scale_with_pillow(image: Image.Image, box: Box, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


@cache
def _vector_scaler() -> Callable[[Image.Image, Box, int], Image.Image] | None:
    """What `_scale_with_pillow` does, by vector instructions; None where the package for it is not installed."""
    try:
        from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
    except ImportError:
        return None
    bilinear = ResizeAlg.convolution(FilterType.bilinear)
    own = threading.local()  # a resizer keeps its buffers, and is not for several threads at once

    def scale(image: Image.Image, box: Box, size: int) -> Image.Image:
        if not hasattr(own, "resizer"):
            own.resizer = Resizer()
        left, upper, right, lower = box
        scaled = Image.new(image.mode, (size, size))
        crop = CropBox(left, upper, right - left, lower - upper)
        own.resizer.resize_pil(image, scaled, ResizeOptions(bilinear, crop_box=crop))
        return scaled

    return scale
