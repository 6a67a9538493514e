"""Labelled image files for verification and calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexnet_triton.common.files import is_image
from alexnet_triton.export.errors import ModelError
from alexnet_triton.imaging import ImageError, decode


@dataclass(frozen=True)
class LabelledImages:
    """Image files and their labels, int64 [N], None where the folder has none, and how many files it has."""

    paths: tuple[Path, ...]
    labels: np.ndarray | None
    in_folder: int

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, size: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The images from `start` to `stop`, decoded as the server decodes them: uint8 [N, size, size, 3].

        Raises:
            ModelError: a file is not an image.
        """
        return np.stack([_decode(path, size) for path in self.paths[start:stop]])

    def split(self, count: int) -> tuple["LabelledImages", "LabelledImages"]:
        """The first `count` images, and the others."""
        first, rest = slice(None, count), slice(count, None)
        return self._part(first, self.in_folder), self._part(rest, self.in_folder - count)

    def first(self, count: int | None) -> "LabelledImages":
        """The first `count` images, of a folder that has as many as before; all where it is None."""
        return self._part(slice(count), self.in_folder)

    def _part(self, part: slice, in_folder: int) -> "LabelledImages":
        labels = None if self.labels is None else self.labels[part]
        return LabelledImages(self.paths[part], labels, in_folder)


def find_images(folder: Path, classes: Sequence[str], limit: int | None = None) -> LabelledImages:
    """The files `folder/<class>/*`, in a fixed order that mixes the classes; at most `limit` of them.

    A folder without such folders may hold images itself: they have no labels.

    Raises:
        ModelError: there are none, or a folder is not named after a class.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; write one with alexnet-triton pictures --to {folder}")
    labels = {name: label for label, name in enumerate(classes)}
    found = sorted(path for path in folder.glob("*/*") if is_image(path))
    unknown = next((path.parent for path in found if path.parent.name not in labels), None)
    if unknown is not None:
        raise ModelError(f"{unknown}: the model has no class of this name; its classes: {', '.join(classes[:10])}")
    unlabelled = [] if found else sorted(path for path in folder.iterdir() if is_image(path))
    if not found and not unlabelled:
        raise ModelError(f"{folder}: no images, neither in <class>/ folders nor in it")
    order = np.random.default_rng(0).permutation(len(found or unlabelled))[:limit]
    paths = tuple((found or unlabelled)[i] for i in order)
    own = np.array([labels[path.parent.name] for path in paths], np.int64) if found else None
    return LabelledImages(paths, own, len(found or unlabelled))


def _decode(path: Path, size: int) -> np.ndarray:
    try:
        return decode(path.read_bytes(), size)
    except (OSError, ImageError) as error:
        raise ModelError(f"{path}: {error}; remove or replace it") from error
