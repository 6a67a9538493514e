"""Labelled images: what is in a data set, and batches of them ready for the network."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from imaging import ImageError, center_box, open_image, resample
from training import fashion_mnist
from training.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
SPLITS = ("train", "test")
FETCHED = Path("artifacts/data/fashion-mnist")

Cut = Callable[[Image.Image, int], np.ndarray]  # an image and its place in the run to uint8 [S, S, 3]


class Split(Protocol):
    """Images with their labels: uint8 pictures by index, labels int64 [N]."""

    @property
    def labels(self) -> np.ndarray: ...

    def image(self, index: int) -> Image.Image: ...


@dataclass(frozen=True)
class ArraySplit:
    """Small images held in memory: uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB)."""

    images: np.ndarray
    labels: np.ndarray

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])


@dataclass(frozen=True)
class FileSplit:
    """Image files, decoded when they are asked for."""

    paths: tuple[Path, ...]
    labels: np.ndarray

    def image(self, index: int) -> Image.Image:
        path = self.paths[index]
        try:
            return open_image(path.read_bytes())
        except (OSError, ImageError) as error:
            raise DataError(f"{path}: {error}; remove or replace it") from error


@dataclass(frozen=True)
class Dataset:
    """A training and a test split of the same classes."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split


def open_dataset(source: str, folder: Path | None = None) -> Dataset:
    """`fashion-mnist` (from `folder`, or found or fetched), or the path of a folder of photographs.

    Raises:
        DataError: the data cannot be had, or are laid out otherwise.
    """
    if source == "fashion-mnist":
        found = fashion_mnist.locate(folder, FETCHED)
        train, test = (ArraySplit(*fashion_mnist.load(found, split)) for split in SPLITS)
        return Dataset(source, fashion_mnist.CLASSES, train, test)
    return open_folder(Path(source))


def open_folder(folder: Path) -> Dataset:
    """`folder/train/<class>/*` and `folder/test/<class>/*` (or `val`), classes in alphabetical order.

    Raises:
        DataError: a part is missing or a class has no images.
    """
    if not (folder / "train").is_dir():
        raise DataError(f"{folder}: no folder train/<class>/ in it; lay the photographs out so, with test/ beside it")
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if test is None:
        raise DataError(f"{folder}: neither test/ nor val/ in it; put photographs to test on there")
    classes = tuple(sorted(entry.name for entry in (folder / "train").iterdir() if entry.is_dir()))
    if len(classes) < 2:
        raise DataError(f"{folder / 'train'}: {len(classes)} class folders; at least 2 are needed")
    return Dataset(folder.name, classes, _file_split(folder / "train", classes), _file_split(test, classes))


def _file_split(folder: Path, classes: Sequence[str]) -> FileSplit:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).glob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{folder / name}: no images for class {name!r}; add some, or remove the class everywhere")
        paths += found
        labels += [label] * len(found)
    return FileSplit(tuple(paths), np.array(labels, np.int64))


def center_cut(size: int) -> Cut:
    """The evaluation geometry, the server's own: short side to 256, central size x size."""
    return lambda image, _: resample(image, center_box(*image.size, size), size)


def in_order(count: int, batch: int) -> Iterator[np.ndarray]:
    """Indices 0 to count - 1 in chunks of `batch`, the last one shorter."""
    return (np.arange(start, min(start + batch, count)) for start in range(0, count, batch))


def shuffled(count: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Indices in chunks of `batch` without end, each epoch in another order, its incomplete last chunk left out."""
    for epoch in itertools.count():
        order = np.random.default_rng((seed, epoch)).permutation(count)
        yield from (order[start : start + batch] for start in range(0, max(count - batch, 0) + 1, batch))


def batches(
    split: Split, chunks: Iterable[np.ndarray], cut: Cut, workers: int = 2
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images and labels of each chunk of indices: uint8 [B, S, S, 3] and int64 [B].

    Threads prepare a few batches ahead: decoding and scaling release the interpreter lock.
    """

    def prepare(first: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = [cut(split.image(int(index)), place) for place, index in enumerate(indices, start=first)]
        return np.stack(images), split.labels[indices]

    place = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    ahead: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
    try:
        for chunk in chunks:
            ahead.append(pool.submit(prepare, place, chunk))
            place += len(chunk)
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def pixel_statistics(split: Split, images: int = 2000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per RGB channel, in pixel values 0 to 255, over a fixed sample."""
    indices = np.random.default_rng(0).permutation(len(split.labels))[:images]
    pixels = np.concatenate([np.asarray(split.image(int(i)).convert("RGB")).reshape(-1, 3) for i in indices])
    mean, std = pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 1.0)
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)
