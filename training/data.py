"""Data sets by name or folder."""

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from alexnet_triton.imaging import ImageError, open_image
from alexnet_triton.training import cifar10, fashion_mnist
from alexnet_triton.training.errors import DataError

# WAS alexnet_triton.training.data: Labelled images, in memory or in files, and what is done about damaged ones.


SKIPPED_PART = 0.01  # of the images of a split; more than that damaged stops the run


class Split(Protocol):
    """Images with their labels: pictures by index (None for a damaged one), labels int64 [N]."""

    @property
    def labels(self) -> np.ndarray: ...

    def image(self, index: int) -> Image.Image | None: ...


@dataclass(frozen=True)
class ArraySplit:
    """Small images held in memory: uint8 [N, H, W] (grey) or [N, H, W, 3] (RGB)."""

    images: np.ndarray
    labels: np.ndarray

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])


class Skipped:
    """Damaged images, each named once on stderr; loader threads share it."""

    def __init__(self, total: int):
        self.total = total
        self.paths: set[Path] = set()
        self._lock = threading.Lock()

    def add(self, path: Path, reason: object) -> None:
        """Note a damaged image.

        Raises:
            DataError: it is one too many.
        """
        with self._lock:
            if path in self.paths:
                return
            self.paths.add(path)
            count = len(self.paths)
        if count > SKIPPED_PART * self.total:
            raise DataError(
                f"{path}: {reason}; {count} of {self.total:,} images are damaged, more than "
                f"{SKIPPED_PART:.0%}: remove or replace them"
            )
        print(f"training: {path}: {reason}; skipped ({count} of {self.total:,} images)", file=sys.stderr)


@dataclass(frozen=True)
class FileSplit:
    """Image files, decoded when they are asked for."""

    paths: tuple[Path, ...]
    labels: np.ndarray
    skipped: Skipped = field(compare=False)

    def image(self, index: int) -> Image.Image | None:
        path = self.paths[index]
        try:
            return open_image(path.read_bytes())
        except (OSError, ImageError) as error:
            self.skipped.add(path, error)
            return None


@dataclass(frozen=True)
class Subset:
    """Some images of a split, int64 [M] of its indices, in that order."""

    whole: Split
    indices: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.whole.labels[self.indices]

    def image(self, index: int) -> Image.Image | None:
        return self.whole.image(int(self.indices[index]))


def hold_out(split: Split, part: float) -> tuple[Split, Split | None]:
    """A split without `part` of each class, and that part: the same images in every run.

    At least one image of a class is held out, and at least one is left.
    """
    if part == 0.0:
        return split, None
    rng = np.random.default_rng(2012)
    held = np.zeros(len(split.labels), bool)
    for label in np.unique(split.labels):
        of_class = np.flatnonzero(split.labels == label)
        count = min(max(1, round(part * len(of_class))), len(of_class) - 1)
        held[rng.permutation(of_class)[:count]] = True
    if not held.any():
        return split, None
    return Subset(split, np.flatnonzero(~held)), Subset(split, np.flatnonzero(held))


def skipped(split: Split) -> frozenset[Path]:
    """Damaged images met so far."""
    return frozenset(split.skipped.paths) if isinstance(split, FileSplit) else frozenset()


# WAS alexnet_triton.training.data: Folders of photographs, one folder a class.


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
TEST_FOLDERS = ("test", "val")


def open_folder(folder: Path) -> tuple[tuple[str, ...], FileSplit, FileSplit]:
    """Classes, training and test split of `folder/train/<class>/*` and `folder/test/<class>/*` (or `val`).

    Classes are in alphabetical order.

    Raises:
        DataError: a part is missing, a class has no images, or the two splits have other classes.
    """
    if not (folder / "train").is_dir():
        raise DataError(f"{folder}: no folder train/<class>/ in it; lay the photographs out so, with test/ beside it")
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if test is None:
        raise DataError(f"{folder}: neither test/ nor val/ in it; put photographs to test on there")
    classes = _class_folders(folder / "train")
    if len(classes) < 2:
        raise DataError(f"{folder / 'train'}: {len(classes)} class folders; at least 2 are needed")
    for name in set(_class_folders(test)) ^ set(classes):
        there, missing = (folder / "train", test) if name in classes else (test, folder / "train")
        raise DataError(f"{missing}: no folder for class {name!r} of {there}; add it, or remove the class everywhere")
    return classes, _file_split(folder / "train", classes), _file_split(test, classes)


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))


def _file_split(folder: Path, classes: Sequence[str]) -> FileSplit:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).glob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(f"{folder / name}: no images for class {name!r}; add some, or remove the class everywhere")
        paths += found
        labels += [label] * len(found)
    return FileSplit(tuple(paths), np.array(labels, np.int64), Skipped(len(paths)))


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
