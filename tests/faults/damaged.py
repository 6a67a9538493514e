"""What is damaged before it is sent: the image zoo, of files that are broken, huge or odd; and mutations of bytes."""

import io
import re
import struct
import zlib
from collections.abc import Mapping
from random import Random

from PIL import Image

_EXIF_ORIENTATION = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12"  # big-endian TIFF, one entry, the tag of orientation


def zoo() -> Mapping[str, bytes]:
    """Each image's description and bytes, the same at each call."""
    photograph = _make(320, 240)
    jpeg, png = _save(photograph, "JPEG"), _save(photograph, "PNG")
    frames = [photograph.rotate(angle).convert("P") for angle in (0, 90, 180)]
    return {
        "empty": b"",
        "text": b"not an image at all",
        "only the first bytes of a JPEG": b"\xff\xd8\xff",
        "truncated JPEG": jpeg[: len(jpeg) // 2],
        "truncated PNG": png[: len(png) // 2],
        "JPEG with its middle gone": jpeg[:200] + jpeg[-200:],
        "12 KB of 100 megapixels": _flat_png(10_000, 10_000),
        "2 GB of RGBA": _flat_png(23_000, 23_000),
        "a PNG that claims 4 billion pixels": _png_header(65_535, 65_535),
        "a PNG of no height": _png_header(100, 0),
        "EXIF of the wrong type": _with_exif(jpeg, _EXIF_ORIENTATION + b"\0\x07\0\0\0\x04abcd"),
        "EXIF that ends early": _with_exif(jpeg, _EXIF_ORIENTATION),
        "EXIF orientation 99": _with_exif(jpeg, _EXIF_ORIENTATION + b"\0\3\0\0\0\1\0\x63\0\0" + bytes(4)),
        "EXIF with a count of 4 billion": _with_exif(jpeg, _EXIF_ORIENTATION + b"\0\3\xff\xff\xff\xff\0\1\0\0"),
        "CMYK": _save(photograph.convert("CMYK"), "JPEG"),
        "16 bits a channel": _save(Image.new("I;16", (64, 64), 40_000), "PNG"),
        "one bit": _save(photograph.convert("1"), "PNG"),
        "palette": _save(photograph.convert("P"), "PNG"),
        "transparent": _save(photograph.convert("RGBA"), "PNG"),
        "animated GIF": _save(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated WebP": _save(photograph, "WEBP", save_all=True, append_images=[photograph.rotate(90)]),
        "one pixel": _save(Image.new("RGB", (1, 1)), "PNG"),
        "one pixel high": _save(Image.new("RGB", (5_000, 1)), "PNG"),
        "BMP": _save(photograph, "BMP"),
        "BMP whose header is cut": _save(photograph, "BMP")[:30],
        "TIFF": _save(photograph, "TIFF"),
        "zeros": bytes(10_000),
    }


def failing() -> list[bytes]:
    """Images that are refused, each in another place: no format, in the header, and while pixels are read."""
    images = zoo()
    return [images[name] for name in ("text", "truncated JPEG", "truncated PNG", "a PNG of no height", "empty")]


def photographs(seed: int) -> list[bytes]:
    """JPEGs of 0.1 to 12 megapixels."""
    sizes = ((360, 280), (1000, 800), (2000, 1500), (4000, 3000))
    return [_save(_make(width, height, seed + place), "JPEG") for place, (width, height) in enumerate(sizes)]


def _make(width: int, height: int, seed: int = 1) -> Image.Image:
    """Smooth noise."""
    colours = Image.frombytes("RGB", (5, 4), Random(seed).randbytes(60))
    return colours.resize((width, height), Image.Resampling.BICUBIC)


def _save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _with_exif(jpeg: bytes, exif: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def _png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))


def _flat_png(width: int, height: int) -> bytes:
    """A white PNG of one bit a pixel."""
    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * ((width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return _png_header(width, height) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ---- mutations

NASTY = (b"-1", b"0", b"18446744073709551616", b"1e999", b"null", b'"x"', b"[]", b"{}", b"true", b"2147483648")
NUMBER = re.compile(rb"\d+")


def mutate(data: bytes, random: Random) -> bytes:
    """Change bytes in one of the ways in which messages are broken."""
    start = random.randrange(len(data) or 1)
    end = min(len(data), start + random.choice((1, 2, 8, 64)))
    way = random.randrange(6)
    if way == 0:  # a bit
        return data[:start] + bytes([(data[start] if data else 0) ^ 1 << random.randrange(8)]) + data[start + 1 :]
    if way == 1:
        return data[:start] + data[end:]
    if way == 2:
        return data[:end] + data[start:end] * random.randrange(1, 5) + data[end:]
    if way == 3:
        return data[:start] + random.randbytes(end - start) + data[end:]
    if way == 4:
        return data[:start]
    numbers = list(NUMBER.finditer(data[:400]))
    if not numbers:
        return data[:start] + random.choice(NASTY) + data[start:]
    chosen = random.choice(numbers)
    return data[: chosen.start()] + random.choice(NASTY) + data[chosen.end() :]
