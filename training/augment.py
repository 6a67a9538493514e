"""Random views of a training image, each decided by a seed and the image's place in the run."""

import numpy as np
from PIL import Image

from imaging import SHORT_SIDE, Box, resample
from training.data import PixelStatistics
from training.loading import Cut, center_cut
from training.recipe import Recipe


def random_box(width: int, height: int, size: int, rng: np.random.Generator) -> Box:
    """A random size x size crop of the central 256 x 256 of the image scaled to a short side of 256.

    2012 paper, sections 2 and 4.1.
    """
    short = min(width, height)
    side = short * size / SHORT_SIDE
    left, upper = ((length - short) / 2 + rng.uniform(0, short - side) for length in (width, height))
    return left, upper, left + side, upper + side


class Lighting:
    """Multiples of the principal components of the training set's colours, added to all pixels of an image.

    2012 paper, section 4.1: the shift is sum of a_i * l_i * p_i over the components p_i with a_i Gaussian. As its
    eigenvalues have no unit that would fit pixels, l_i is here the deviation along p_i, in pixel values 0 to 255.
    """

    def __init__(self, covariance: np.ndarray, deviation: float):
        """`covariance` [3, 3] of RGB pixels in values 0 to 255; `deviation` of the multiples, 0.1 in the paper."""
        variances, self.components = np.linalg.eigh(covariance)  # in columns
        self.lengths = np.sqrt(np.maximum(variances, 0)) * deviation

    def shift(self, multiples: np.ndarray) -> np.ndarray:
        """What is added to R, G and B, float [3], for one standard Gaussian a component."""
        return self.components @ (multiples * self.lengths)

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [S, S, 3] to the same, rounded and kept in 0 to 255."""
        shifts = np.rint(self.shift(rng.standard_normal(3))).astype(np.int16)
        return np.clip(pixels + shifts, 0, 255).astype(np.uint8)


def random_cut(size: int, seed: int, lighting: Lighting | None = None) -> Cut:
    """Random crops, horizontal reflections and lighting: Pillow image to uint8 [size, size, 3]."""

    def cut(image: Image.Image, place: int) -> np.ndarray:
        rng = np.random.default_rng((seed, place))
        pixels = resample(image, random_box(*image.size, size, rng), size)
        pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        return lighting(pixels, rng) if lighting else pixels

    return cut


def make_cut(size: int, recipe: Recipe, pixels: PixelStatistics) -> Cut:
    """A recipe's views of training images."""
    if not recipe.augment:
        return center_cut(size)
    lighting = Lighting(np.array(pixels.covariance), recipe.lighting) if recipe.lighting else None
    return random_cut(size, recipe.seed, lighting)
