"""Random views of a training image, each decided by a seed and the image's place in the run."""

import numpy as np
from PIL import Image

from imaging import SHORT_SIDE, Box, resample
from training.data import Cut


def random_box(width: int, height: int, size: int, rng: np.random.Generator) -> Box:
    """A random size x size crop of the image scaled to a short side of 256 (2012 paper, section 4.1)."""
    side = min(width, height) * size / SHORT_SIDE
    left, upper = rng.uniform(0, width - side), rng.uniform(0, height - side)
    return left, upper, left + side, upper + side


def random_cut(size: int, seed: int) -> Cut:
    """Random crops and horizontal reflections: Pillow image to uint8 [size, size, 3]."""

    def cut(image: Image.Image, place: int) -> np.ndarray:
        rng = np.random.default_rng((seed, place))
        pixels = resample(image, random_box(*image.size, size, rng), size)
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels

    return cut
