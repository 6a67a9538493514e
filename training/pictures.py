"""The command `alexnet-triton pictures`: images of a data set as files, for export, client and load tests."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.common.command import Parser, finish, positive_int
from alexnet_triton.common.files import WriteError
from alexnet_triton.training.data import SPLITS, Split, add_data_options, open_dataset

PROG = "alexnet-triton pictures"
FORMATS: dict[str, dict[str, Any]] = {"jpeg": {"quality": 95}, "png": {}}


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description="Write images of a data set as files.")
    add_data_options(parser)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=positive_int, default=1000, help="images to write (default 1000)")
    parser.add_argument("--format", choices=FORMATS, default="jpeg")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(words)
    return finish(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    dataset = open_dataset(options.data, options.data_dir)
    split = dataset.train if options.split == "train" else dataset.test
    written = write(split, dataset.classes, options.count, options.to, options.format)
    print(f"{written:,} {options.split} images of {dataset.name} in {options.to}")


def write(split: Split, classes: tuple[str, ...], count: int, folder: Path, file_format: str) -> int:
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
                image.save(path, **FORMATS[file_format])
                written += 1
            whole.rename(folder)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written: {error.strerror or error}; give another with --to") from error
    return written
