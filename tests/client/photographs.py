"""Pictures that the tests make."""

import io

import numpy as np
from PIL import Image


def jpeg(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A picture of large random blotches, different for every seed."""
    blotches = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blotches).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
