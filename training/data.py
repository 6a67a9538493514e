"""Data sets by name or folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import cifar10, fashion_mnist
from training.folders import open_folder
from training.splits import ArraySplit, Split

SPLITS = ("train", "test")
FETCHED = Path("artifacts/data")


@dataclass(frozen=True)
class Dataset:
    """A training and a test split of the same classes."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split


def open_dataset(source: str, folder: Path | None = None) -> Dataset:
    """`fashion-mnist` or `cifar10` (from `folder`, or found or fetched), or the path of a folder of photographs.

    Raises:
        DataError: the data cannot be had, or are laid out otherwise.
    """
    if source == "fashion-mnist":
        found = fashion_mnist.locate(folder, FETCHED / "fashion-mnist")
        train, test = (ArraySplit(*fashion_mnist.load(found, split)) for split in SPLITS)
        return Dataset(source, fashion_mnist.CLASSES, train, test)
    if source == "cifar10":
        archive = cifar10.locate(folder, FETCHED / "cifar10")
        train, test = (ArraySplit(*cifar10.load(archive, split)) for split in SPLITS)
        return Dataset(source, cifar10.CLASSES, train, test)
    return Dataset(Path(source).name, *open_folder(Path(source)))


@dataclass(frozen=True)
class PixelStatistics:
    """Of RGB pixels, in values 0 to 255: mean and deviation [3], covariance [3][3]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]


def pixel_statistics(split: Split, images: int = 2000) -> PixelStatistics:
    """Over all pixels of a fixed sample of images."""
    indices = np.random.default_rng(0).permutation(len(split.labels))[:images]
    opened = (split.image(int(index)) for index in indices)
    pixels = np.concatenate([np.asarray(image.convert("RGB")).reshape(-1, 3) for image in opened if image is not None])
    covariance = np.cov(pixels, rowvar=False, bias=True)
    return PixelStatistics(
        tuple(pixels.mean(axis=0).tolist()),
        tuple(np.maximum(pixels.std(axis=0), 1.0).tolist()),
        tuple(map(tuple, covariance.tolist())),
    )
