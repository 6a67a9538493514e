"""A folder of photographs, looked at before it is trained on: counts, sizes, damaged files, images in both splits."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alexnet_triton.common.command import printable
from alexnet_triton.imaging import MAX_BYTES, ImageError, identify, open_image
from alexnet_triton.training.data import SPLITS, Dataset, FileSplit, map_files, too_many_damaged
from alexnet_triton.training.errors import DataError

FEW = 10  # images of a class
LISTED = 10  # files that are named
READ_AT_START = 20_000  # images; a run on more of them starts without reading them all


@dataclass(frozen=True)
class Look:
    """What one file is: its content's SHA-256, its size in pixels as stored, or what is wrong with it."""

    path: Path
    split: str
    digest: bytes
    size: tuple[int, int] | None
    damage: str | None


@dataclass(frozen=True)
class Survey:
    """What all files of a folder are."""

    dataset: Dataset
    looks: tuple[Look, ...]

    @property
    def damaged(self) -> list[Look]:
        return [look for look in self.looks if look.damage]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each sound image, by their product."""
        return sorted((look.size for look in self.looks if look.size), key=lambda size: size[0] * size[1])

    @property
    def in_both(self) -> list[tuple[Path, Path]]:
        """A training file and a test file of the same content, for each content that stands in both splits."""
        train, test = ({look.digest: look.path for look in self._sound(split)} for split in SPLITS)
        return [(train[digest], test[digest]) for digest in train.keys() & test.keys()]

    def _sound(self, split: str) -> Iterator[Look]:
        return (look for look in self.looks if look.split == split and not look.damage)

    def refusal(self) -> str | None:
        """Why a run on this folder would stop, in a line."""
        for split in SPLITS:
            damaged = sum(look.split == split for look in self.damaged)
            total = len(_split(self.dataset, split).paths)
            if too_many_damaged(damaged, total):
                return f"{damaged:,} of {total:,} {split} images are damaged, more than a run skips: replace them"
        return None


def survey(dataset: Dataset, decode: bool) -> Survey:
    """Read every file of a folder's data set; without `decode`, of the images only their headers are looked into."""
    looks: list[Look] = []
    for split in SPLITS:
        work = partial(_look, split=split, examine=open_image if decode else identify)
        looks += map_files(work, _split(dataset, split).paths, "reading")
    return Survey(dataset, tuple(looks))


def _split(dataset: Dataset, name: str) -> FileSplit:
    split = dataset.train if name == "train" else dataset.test
    assert isinstance(split, FileSplit)
    return split


def _look(path: Path, split: str, examine: Callable[[bytes], object]) -> Look:
    try:
        with path.open("rb") as file:
            encoded = file.read(MAX_BYTES + 1)
        size = identify(encoded).size
        examine(encoded)
    except (OSError, ImageError) as error:
        return Look(path, split, b"", None, str(error))
    return Look(path, split, hashlib.sha256(encoded).digest(), size, None)


def print_check(dataset: Dataset) -> None:
    """Print all that is found, each file decoded.

    Raises:
        DataError: a run on this folder would stop.
    """
    found = survey(dataset, decode=True)
    for line in report(found):
        print(printable(line))
    if refusal := found.refusal():
        raise DataError(f"{dataset.name} cannot be trained on: {refusal}")


def report(found: Survey) -> Iterator[str]:
    """The lines of --check."""
    yield from _counts(found.dataset)
    yield _sizes(found.sizes)
    faults = [f"{look.path}: {look.damage}" for look in found.damaged]
    yield from _listed(f"damaged: {len(faults):,} of {len(found.looks):,} files", faults)
    pairs = [f"{train} = {test}" for train, test in sorted(found.in_both)]
    yield from _listed(f"in both train and test, by the SHA-256 of the file: {len(pairs):,}", pairs)
    few = [f"{name} ({count})" for name, count in _few(found.dataset)]
    yield from _listed(f"classes of fewer than {FEW} training images: {len(few):,}", few)


def _counts(dataset: Dataset) -> Iterator[str]:
    yield _totals(dataset)
    width = max(len(name) for name in (*dataset.classes, "class"))
    yield f"  {'class':<{width}}{'train':>9}{'test':>9}"
    counts = zip(dataset.classes, *(_class_counts(dataset, split) for split in SPLITS), strict=True)
    for name, train, test in counts:
        yield f"  {name:<{width}}{train:>9,}{test:>9,}"


def _class_counts(dataset: Dataset, split: str) -> list[int]:
    labels = _split(dataset, split).labels.tolist()
    counts = [0] * len(dataset.classes)
    for label in labels:
        counts[label] += 1
    return counts


def _few(dataset: Dataset) -> list[tuple[str, int]]:
    counts = zip(dataset.classes, _class_counts(dataset, "train"), strict=True)
    return [(name, count) for name, count in counts if count < FEW]


def _totals(dataset: Dataset) -> str:
    train, test = (len(_split(dataset, split).paths) for split in SPLITS)
    divided = ", divided by content" if dataset.divided else ""
    return f"{dataset.name}: {len(dataset.classes):,} classes, {train:,} training and {test:,} test images{divided}"


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return "sizes: no image can be read"
    smallest, median, largest = (f"{w} x {h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    return f"sizes: smallest {smallest}, median {median}, largest {largest} pixels"


def _listed(title: str, items: Sequence[str]) -> Iterator[str]:
    yield title
    yield from (f"  {item}" for item in items[:LISTED])
    if len(items) > LISTED:
        yield f"  and {len(items) - LISTED:,} more"


def short_summary(dataset: Dataset) -> str:
    """The same in a line, from the files' headers, for the start of a run."""
    totals = _totals(dataset)
    if sum(len(_split(dataset, split).paths) for split in SPLITS) > READ_AT_START:
        return f"{totals}; --check reads all of them"
    found, few = survey(dataset, decode=False), _few(dataset)
    return (
        f"{totals}; {_sizes(found.sizes)}; {len(found.damaged):,} damaged, {len(found.in_both):,} in both train and "
        f"test, {len(few):,} classes of fewer than {FEW} images; --check names them"
    )
