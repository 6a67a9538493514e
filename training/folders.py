"""Folders of photographs, one folder a class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.errors import DataError
from training.splits import FileSplit, Skipped

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
