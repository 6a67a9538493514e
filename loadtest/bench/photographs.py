"""A hundred different JPEGs to send: photographs from a folder, or the demo's pictures at a photograph's size."""

import io
import shutil
from pathlib import Path

from PIL import Image

from alexnet_triton.common.files import JPEG_SUFFIXES
from alexnet_triton.loadtest.bench.config import BenchError

COUNT = 100
MADE_SIZE = (500, 375)  # the median of ImageNet


def prepare(target: Path, photographs: Path | None, pictures: Path) -> str:
    """Fill `target` with 000.jpg to 099.jpg; returns what they are, in words.

    Raises:
        BenchError: there are too few.
    """
    sources = _choose(photographs or pictures)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for number, source in enumerate(sources):
        body = source.read_bytes() if photographs else _enlarge(source)
        (target / f"{number:03}.jpg").write_bytes(body)
    sizes = [path.stat().st_size for path in target.iterdir()]
    kind = f"photographs of {photographs.name}" if photographs else f"pictures of the demo, enlarged to {MADE_SIZE}"
    return f"{COUNT} {kind}, {sum(sizes) / len(sizes) / 1e3:.0f} kB on average"


def _choose(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in JPEG_SUFFIXES)
    if len(found) < COUNT:
        raise BenchError(f"{len(found)} JPEGs in {folder}, and {COUNT} are needed: name a folder with --images")
    return found[:: len(found) // COUNT][:COUNT]


def _enlarge(source: Path) -> bytes:
    buffer = io.BytesIO()
    with Image.open(source) as image:
        image.convert("RGB").resize(MADE_SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def load_images(folder: Path) -> list[bytes]:
    """The prepared JPEGs, in order."""
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
