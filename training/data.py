"""Data sets: labelled images in memory or in files, by name or from a folder of photographs."""

import argparse
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from alexnet_triton.common.command import Parser, complain, finish, positive_int
from alexnet_triton.common.files import WriteError, is_image, sha256
from alexnet_triton.common.provenance import usable_cores
from alexnet_triton.imaging import ImageError, open_image
from alexnet_triton.training import cifar10, fashion_mnist
from alexnet_triton.training.errors import DataError
from alexnet_triton.training.log import progress_bar

NAMED: dict[str, ModuleType] = {"fashion-mnist": fashion_mnist, "cifar10": cifar10}
SPLITS = ("train", "test")
TEST_FOLDERS = ("test", "val")
FETCHED = Path("artifacts/data")
DAMAGED_FRACTION = 0.01  # of the images of a split; more damaged images than that stop the run
TEST_FRACTION = 0.2  # of the images of a folder that has no split
BAR_AFTER_S = 2.0
BLOCK = 1000  # files whose results are waited for at a time
Result = TypeVar("Result")


class Split(Protocol):
    """Images by index, None for a damaged one, and their labels, int64 [N]."""

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


class FileSplit:
    """Image files, decoded on demand by threads that share it. A damaged one is named once on stderr."""

    def __init__(self, paths: Sequence[Path], labels: np.ndarray):
        self.paths, self.labels = paths, labels
        self.damaged: set[Path] = set()
        self._lock = threading.Lock()

    def image(self, index: int) -> Image.Image | None:
        """The image, None for a damaged one.

        Raises:
            DataError: more than DAMAGED_FRACTION of the split is damaged.
        """
        path = self.paths[index]
        try:
            return open_image(path.read_bytes())
        except (OSError, ImageError) as error:
            self._note_damaged(path, error)
            return None

    def _note_damaged(self, path: Path, reason: object) -> None:
        with self._lock:
            if path in self.damaged:
                return
            self.damaged.add(path)
            count, total = len(self.damaged), len(self.paths)
        if too_many_damaged(count, total):
            raise DataError(
                f"{path}: {reason}; {count} of {total:,} images are damaged, more than "
                f"{DAMAGED_FRACTION:.0%}: remove or replace them"
            )
        complain("alexnet-triton", f"{path}: {reason}; skipped ({count} of {total:,} images)")


def too_many_damaged(count: int, total: int) -> bool:
    """Whether so many damaged images of a split stop a run."""
    return count > DAMAGED_FRACTION * total


@dataclass(frozen=True)
class Subset:
    """The images of a split at `indices`, int64 [M], in that order."""

    whole: Split
    indices: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.whole.labels[self.indices]

    def image(self, index: int) -> Image.Image | None:
        return self.whole.image(int(self.indices[index]))


def hold_out(split: Split, fraction: float) -> tuple[Split, Split | None]:
    """Divide a split into training images and held-out images, in the same way in every run.

    Of each class, `fraction` is held out: at least one image, and never all of them.
    """
    if fraction == 0.0:
        return split, None
    rng = np.random.default_rng(2012)
    held_out = np.zeros(len(split.labels), bool)
    for label in np.unique(split.labels):
        of_class = np.flatnonzero(split.labels == label)
        count = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        held_out[rng.permutation(of_class)[:count]] = True
    if not held_out.any():
        return split, None
    return Subset(split, np.flatnonzero(~held_out)), Subset(split, np.flatnonzero(held_out))


def damaged_paths(split: Split) -> frozenset[Path]:
    """Damaged images found so far."""
    return frozenset(split.damaged) if isinstance(split, FileSplit) else frozenset()


def answered(split: Split, damaged: frozenset[Path]) -> np.ndarray:
    """The indices of a split's images that are not damaged, int64 [M]: those that a network has answered."""
    if not isinstance(split, FileSplit):
        return np.arange(len(split.labels))
    return np.array([index for index, path in enumerate(split.paths) if path not in damaged], np.int64)


def name_of(split: Split, index: int) -> str:
    """What people call an image of a split: its path, or its number where it has none."""
    return str(split.paths[index]) if isinstance(split, FileSplit) else f"image {index:05}"


@dataclass(frozen=True)
class Dataset:
    """A training and a test split of the same classes. `divided`: by the content of the images, see `is_test`."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    divided: bool = False


def add_data_options(parser: argparse.ArgumentParser, default: str | None = "fashion-mnist") -> None:
    """The options --data and --data-dir of a command; without a default, --data is required."""
    description = "fashion-mnist, cifar10, or a folder: train/<class>/ and test/<class>/, or <class>/ to be divided"
    parser.add_argument("--data", default=default, required=default is None, help=description)
    parser.add_argument("--data-dir", type=Path, help="folder that holds the archives of fashion-mnist or cifar10")


def open_dataset(source: str, folder: Path | None = None) -> Dataset:
    """Open a data set.

    Args:
        source: a key of NAMED, or the path of a folder of photographs.
        folder: holds the archives of a named data set. Default: they are found or fetched.

    Raises:
        DataError: the data are not available, or are laid out in another way.
    """
    if source not in NAMED:
        return open_folder(Path(source))
    module = NAMED[source]
    archive = module.locate(folder, FETCHED / source)
    train, test = (ArraySplit(*module.load(archive, split)) for split in SPLITS)
    return Dataset(source, module.CLASSES, train, test)


def open_folder(folder: Path) -> Dataset:
    """The data set of `folder/train/<class>/*` and `folder/test/<class>/*` (or `val`).

    A folder of `<class>/*` alone is divided: see `is_test`. Classes are in alphabetical order.

    Raises:
        DataError: a folder is missing, a class has no images, or the classes of the two splits differ.
    """
    train = folder / "train"
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if not train.is_dir() and test is None:
        return _divide(folder)
    if not train.is_dir():
        raise DataError(f"{folder}: no folder train/<class>/ in it; put the photographs there, with test/ beside it")
    if test is None:
        raise DataError(f"{folder}: neither test/ nor val/ in it; put test photographs there")
    classes = _require_classes(train)
    for name in set(_class_folders(test)) ^ set(classes):
        present, missing = (train, test) if name in classes else (test, train)
        raise DataError(f"{missing}: no folder for class {name!r} of {present}; add it, or remove the class everywhere")
    return Dataset(folder.absolute().name, classes, _file_split(train, classes), _file_split(test, classes))


def _require_classes(folder: Path) -> tuple[str, ...]:
    classes = _class_folders(folder)
    if len(classes) < 2:
        raise DataError(f"{folder}: {len(classes)} class folders; at least 2 are needed")
    return classes


def _divide(folder: Path) -> Dataset:
    """The data set of `folder/<class>/*`."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one of photographs, as train/<class>/ and test/<class>/")
    classes = _require_classes(folder)
    whole = _file_split(folder, classes)
    tested = np.array(list(map_files(is_test, whole.paths, "dividing")))
    train, test = (
        FileSplit([path for path, each in zip(whole.paths, chosen, strict=True) if each], whole.labels[chosen])
        for chosen in (~tested, tested)
    )
    for label in set(range(len(classes))) - set(train.labels.tolist()):
        raise DataError(f"{folder / classes[label]}: too few images, all of them fall to the test split; add some")
    if not len(test.labels):
        raise DataError(f"{folder}: too few images, none of them falls to the test split; add some, or make test/")
    return Dataset(folder.absolute().name, classes, train, test, divided=True)


def is_test(path: Path) -> bool:
    """Whether an image of a folder without train/ and test/ is a test image: TEST_FRACTION of all images are.

    The SHA-256 of the file decides. So copies of a file are on the same side, and files that are added or renamed
    move no other. A file that cannot be read is a training image.
    """
    try:
        return int(sha256(path)[:8], 16) < TEST_FRACTION * 2**32
    except OSError:
        return False


def map_files(work: Callable[[Path], Result], paths: Sequence[Path], what: str) -> Iterator[Result]:
    """What `work` returns of each file, in order, by threads. A bar on stderr when it takes over BAR_AFTER_S."""
    start, done = perf_counter(), 0
    with ThreadPoolExecutor(min(8, usable_cores())) as pool, progress_bar() as progress:
        task = progress.add_task(what, total=len(paths), visible=False, note="")
        for first in range(0, len(paths), BLOCK):
            for result in pool.map(work, paths[first : first + BLOCK]):
                done += 1
                progress.update(task, completed=done, visible=perf_counter() - start > BAR_AFTER_S)
                yield result


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))


def _file_split(folder: Path, classes: Sequence[str]) -> FileSplit:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(filter(is_image, (folder / name).glob("*")))
        if not found:
            raise DataError(f"{folder / name}: no images for class {name!r}; add some, or remove the class everywhere")
        paths += found
        labels += [label] * len(found)
    return FileSplit(paths, np.array(labels, np.int64))


@dataclass(frozen=True)
class PixelStatistics:
    """Of RGB pixels, in values 0 to 255: mean and deviation [3], covariance [3][3]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]


def pixel_statistics(split: Split, images: int = 2000) -> PixelStatistics:
    """Statistics of all pixels of a fixed sample of images."""
    indices = np.random.default_rng(0).permutation(len(split.labels))[:images]
    opened = (split.image(int(index)) for index in indices)
    pixels = np.concatenate([np.asarray(image.convert("RGB")).reshape(-1, 3) for image in opened if image is not None])
    mean, std = pixels.mean(axis=0).tolist(), np.maximum(pixels.std(axis=0), 1.0).tolist()
    covariance = np.cov(pixels, rowvar=False, bias=True).tolist()
    return PixelStatistics(tuple(mean), tuple(std), tuple(map(tuple, covariance)))


# ---- the command `pictures`


PICTURES_PROG = "alexnet-triton pictures"
PICTURE_FORMATS: dict[str, dict[str, Any]] = {"jpeg": {"quality": 95}, "png": {}}


def pictures_main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PICTURES_PROG, description="Write images of a data set as files.")
    add_data_options(parser)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=positive_int, default=1000, help="images to write (default 1000)")
    parser.add_argument("--format", choices=PICTURE_FORMATS, default="jpeg")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(words)
    return finish(PICTURES_PROG, lambda: _write_named(options))


def _write_named(options: argparse.Namespace) -> None:
    dataset = open_dataset(options.data, options.data_dir)
    split = dataset.train if options.split == "train" else dataset.test
    written = write_pictures(split, dataset.classes, options.count, options.to, options.format)
    print(f"{written:,} {options.split} images of {dataset.name} in {options.to}")


def write_pictures(split: Split, classes: tuple[str, ...], count: int, folder: Path, file_format: str) -> int:
    """Write `folder/<class>/<index>.<format>` for `count` evenly spread images, without damaged ones.

    The folder appears in one step, when all of them are written. Returns their number.

    Raises:
        WriteError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise WriteError(f"{folder}: is there already; remove it, or give another with --to")
    total = len(split.labels)
    indices = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            whole, written = Path(temporary, "whole"), 0
            for index in indices:
                image = split.image(int(index))
                if image is None:
                    continue
                path = whole / classes[split.labels[index]] / f"{index:05}.{file_format}"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, **PICTURE_FORMATS[file_format])
                written += 1
            whole.rename(folder)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written: {error.strerror or error}; give another with --to") from error
    return written
