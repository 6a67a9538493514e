"""Images ready for the network: crops for training and evaluation, and batches that threads prepare ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alexnet_triton.common.provenance import usable_cores
from alexnet_triton.imaging import SHORT_SIDE, Box, center_box, resample
from alexnet_triton.training.data import PixelStatistics, Split
from alexnet_triton.training.recipe import Recipe

Crop = Callable[[Image.Image, int], np.ndarray]  # an image and its place in the run to uint8 [S, S, 3]
Chunk = tuple[np.ndarray, np.ndarray]  # indices of images and their places in the run, int64 [B] each
Batch = tuple[Tensor, Tensor]  # images uint8 [B, S, S, 3] and labels int64 [B]


def center_crop(size: int) -> Crop:
    """The server's geometry: short side to 256, central size x size."""
    return lambda image, _: resample(image, center_box(*image.size, size), size)


def ten_crops(size: int) -> Crop:
    """Corners, centre and their reflections, uint8 [10, size, size, 3]; 2012 paper, section 4.1."""

    def crop(image: Image.Image, place: int) -> np.ndarray:
        views = np.stack([resample(image, box, size) for box in _five_boxes(*image.size, size)])
        return np.concatenate([views, views[:, :, ::-1]])

    return crop


CROPS = {1: center_crop, 10: ten_crops}


def _five_boxes(width: int, height: int, size: int) -> tuple[Box, ...]:
    """Four corners and the centre of the central 256 x 256 of an image scaled to a short side of 256."""
    short = min(width, height)
    side = short * size / SHORT_SIDE
    left, upper, room = (width - short) / 2, (height - short) / 2, short - side
    corners = ((0, 0), (room, 0), (0, room), (room, room), (room / 2, room / 2))
    return tuple((left + x, upper + y, left + x + side, upper + y + side) for x, y in corners)


def make_crop(size: int, recipe: Recipe, pixels: PixelStatistics) -> Crop:
    """The crops of training images that a recipe asks for."""
    if not recipe.augment:
        return center_crop(size)
    lighting = Lighting(np.array(pixels.covariance), recipe.lighting) if recipe.lighting else None
    return random_crop(size, recipe.seed, lighting)


def random_crop(size: int, seed: int, lighting: "Lighting | None" = None) -> Crop:
    """Random crops, horizontal reflections and lighting. The seed and an image's place in the run decide each."""

    def crop(image: Image.Image, place: int) -> np.ndarray:
        rng = np.random.default_rng((seed, place))
        pixels = resample(image, random_box(*image.size, size, rng), size)
        pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        return lighting(pixels, rng) if lighting else pixels

    return crop


def random_box(width: int, height: int, size: int, rng: np.random.Generator) -> Box:
    """A random size x size crop of the central 256 x 256 of an image scaled to a short side of 256.

    2012 paper, sections 2 and 4.1.
    """
    short = min(width, height)
    side = short * size / SHORT_SIDE
    left, upper = ((length - short) / 2 + rng.uniform(0, short - side) for length in (width, height))
    return left, upper, left + side, upper + side


class Lighting:
    """Adds multiples of the principal components of the training set's colours to all pixels of an image.

    2012 paper, section 4.1: the shift is the sum of a_i * l_i * p_i over the components p_i, with a_i Gaussian. The
    paper gives its eigenvalues no unit; here l_i is the deviation along p_i, in pixel values 0 to 255.
    """

    def __init__(self, covariance: np.ndarray, deviation: float):
        """`covariance` [3, 3] of RGB pixels in values 0 to 255; `deviation` of the multiples, 0.1 in the paper."""
        variances, self.components = np.linalg.eigh(covariance)  # in columns
        self.lengths = np.sqrt(np.maximum(variances, 0)) * deviation

    def shift(self, multiples: np.ndarray) -> np.ndarray:
        """The change of R, G and B, float [3], for one standard Gaussian a component."""
        return self.components @ (multiples * self.lengths)

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 [S, S, 3] to the same, rounded and clipped to 0 to 255."""
        shifts = np.rint(self.shift(rng.standard_normal(3))).astype(np.int16)
        return np.clip(pixels + shifts, 0, 255).astype(np.uint8)


def in_order(count: int, batch: int) -> Iterator[Chunk]:
    """Indices 0 to count - 1 in chunks of `batch`, the last one shorter."""
    for start in range(0, count, batch):
        indices = np.arange(start, min(start + batch, count))
        yield indices, indices


def steps_per_epoch(count: int, batch: int) -> int:
    """Whole batches in `count` images, at least one."""
    return max(count // batch, 1)


def shuffled(count: int, batch: int, seed: int, epoch: int) -> Iterator[Chunk]:
    """The chunks of one epoch. Each epoch has its own order and leaves the incomplete last chunk out."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    for start in range(0, steps_per_epoch(count, batch) * batch, batch):
        indices = order[start : start + batch]
        yield indices, epoch * count + np.arange(start, start + len(indices))


def share(chunks: Iterable[Chunk], rank: int, world: int) -> Iterator[Chunk]:
    """One process's share of every chunk. All shares are equally long; up to `world - 1` images are left out."""
    for indices, places in chunks:
        end = len(indices) - len(indices) % world if len(indices) >= world else len(indices)
        yield indices[rank:end:world], places[rank:end:world]


def batches(split: Split, chunks: Iterable[Chunk], crop: Crop, pin: bool = False) -> Iterator[Batch]:
    """The images and labels of each chunk without damaged images, in pinned memory if `pin` is set.

    Threads prepare a few batches ahead: decoding and scaling release the interpreter lock.
    """
    all_labels, workers = split.labels, usable_cores()

    def prepare(chunk: Chunk) -> Batch:
        opened = [(split.image(int(index)), int(index), int(place)) for index, place in zip(*chunk, strict=True)]
        views = [(crop(image, place), index) for image, index, place in opened if image is not None]
        if not views:
            return torch.empty(0), torch.empty(0, dtype=torch.int64)
        images = torch.from_numpy(np.stack([view for view, _ in views]))
        labels = torch.from_numpy(all_labels[[index for _, index in views]])
        return (images.pin_memory(), labels.pin_memory()) if pin else (images, labels)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[Future[Batch]] = deque()
    try:
        for chunk in chunks:
            ahead.append(pool.submit(prepare, chunk))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
