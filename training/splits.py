"""Labelled images, in memory or in files, and what is done about damaged ones."""

import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from imaging import ImageError, open_image
from training.errors import DataError

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
