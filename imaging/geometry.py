"""Where an image is cut and how it is scaled."""

import numpy as np
from PIL import Image

SHORT_SIDE = 256  # the 2012 paper, section 2: shorter side to 256, then the central patch

Box = tuple[float, float, float, float]  # left, upper, right, lower, in source pixels


def center_box(width: int, height: int, size: int) -> Box:
    """The part of a width x height image that the central size x size crop covers.

    Cropping `size` pixels after scaling the short side to `SHORT_SIDE` covers
    `short * size / SHORT_SIDE` source pixels, so one resampling does both.
    """
    side = min(width, height) * size / SHORT_SIDE
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def resample(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """Scale `box` of an image in mode L or RGB to uint8 [size, size, 3], RGB.

    Bilinear with antialiasing, as Pillow's and torchvision's `resize` do. A grey image is
    scaled as one channel and repeated, which gives the same bytes at a third of the work.
    """
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels
