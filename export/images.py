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
    """Image files and their labels, int64 [N], and how many files the folder has."""

    paths: tuple[Path, ...]
    labels: np.ndarray
    in_folder: int

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, size: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The images from `start` to `stop`, decoded as the server decodes them: uint8 [N, size, size, 3].

        Raises:
            ModelError: a file is not an image.
        """
        return np.stack([_decode(path, size) for path in self.paths[start:stop]])


def find_images(folder: Path, classes: Sequence[str], limit: int | None = None) -> LabelledImages:
    """The files `folder/<class>/*`, in a fixed order that mixes the classes; at most `limit` of them.

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
    if not found:
        raise ModelError(f"{folder}: no images in <class>/ folders")
    order = np.random.default_rng(0).permutation(len(found))[:limit]
    paths = tuple(found[i] for i in order)
    return LabelledImages(paths, np.array([labels[path.parent.name] for path in paths], np.int64), len(found))


def _decode(path: Path, size: int) -> np.ndarray:
    try:
        return decode(path.read_bytes(), size)
    except (OSError, ImageError) as error:
        raise ModelError(f"{path}: {error}; remove or replace it") from error
