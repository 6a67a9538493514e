"""Several views of a test image, whose probabilities are averaged."""

import numpy as np
from PIL import Image

from imaging import SHORT_SIDE, Box, resample
from training.loading import Cut, center_cut


def five_boxes(width: int, height: int, size: int) -> tuple[Box, ...]:
    """Four corners and the centre of the central 256 x 256 of an image scaled to a short side of 256."""
    short = min(width, height)
    side = short * size / SHORT_SIDE
    left, upper, room = (width - short) / 2, (height - short) / 2, short - side
    corners = ((0, 0), (room, 0), (0, room), (room, room), (room / 2, room / 2))
    return tuple((left + x, upper + y, left + x + side, upper + y + side) for x, y in corners)


def ten_crops(size: int) -> Cut:
    """2012 paper, section 4.1: corners, centre and their reflections, uint8 [10, size, size, 3]."""

    def cut(image: Image.Image, place: int) -> np.ndarray:
        views = np.stack([resample(image, box, size) for box in five_boxes(*image.size, size)])
        return np.concatenate([views, views[:, :, ::-1]])

    return cut


CROPS = {1: center_cut, 10: ten_crops}
