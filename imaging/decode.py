"""Encoded image files to pixels, refusing what is not an image or is too large."""

import io

import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from alexnet_triton.imaging.geometry import SHORT_SIDE, center_box, resample

# By their first bytes. Pillow's own `Image.open` would warn of large images before they can be refused.
FORMATS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
}
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 100_000_000


class ImageError(ValueError):
    """These bytes cannot be classified; the message says why, in one line."""


def decode(encoded: bytes, size: int) -> np.ndarray:
    """Decode an image file to uint8 [size, size, 3], RGB.

    EXIF rotation is applied, the first frame taken, transparency laid on white, the short
    side scaled to 256 and the centre cropped. JPEGs are decoded at a reduced scale where
    that leaves the short side at 256 pixels or more.

    Raises:
        ImageError: empty, not a JPEG, PNG, WebP, GIF or BMP, damaged, or above `MAX_BYTES` or `MAX_PIXELS`.
    """
    image = open_image(encoded)
    return resample(image, center_box(*image.size, size), size)


def open_image(encoded: bytes, short_side: int = SHORT_SIDE) -> Image.Image:
    """Decode an image file to a Pillow image in mode L or RGB, upright.

    Raises:
        ImageError: as `decode`.
    """
    image = identify(encoded)
    try:
        if image.format == "JPEG":
            scale = short_side / min(image.size)
            image.draft(None, (round(image.width * scale), round(image.height * scale)))
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise ImageError(f"damaged {image.format} image: {error}") from error


def identify(encoded: bytes) -> ImageFile:
    """Read the header alone: nothing is decoded before its size is known to be bounded.

    Raises:
        ImageError: as `decode`, but for damage behind the header.
    """
    if not encoded:
        raise ImageError("empty file, not an image")
    if len(encoded) > MAX_BYTES:
        raise ImageError(f"{len(encoded):,} bytes, more than the {MAX_BYTES:,} allowed")
    reader = next((FORMATS[magic] for magic in FORMATS if encoded.startswith(magic)), None)
    if reader is None:
        raise ImageError("not a JPEG, PNG, WebP, GIF or BMP image")
    try:
        image = reader(io.BytesIO(encoded))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ImageError(f"damaged image: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"image of {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to L or RGB; 16 bits a channel are scaled to 8, transparency laid on white."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
