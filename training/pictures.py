"""Write images of a data set as files: python -m alexnet_triton.training.pictures --to artifacts/pictures --count 1000.

Later stages, the client and the load tests read pictures, whatever data set they come from.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.training.data import SPLITS, Split, open_dataset, skipped
from alexnet_triton.training.errors import DataError, TrainingError

FORMATS: dict[str, dict[str, Any]] = {"jpeg": {"quality": 95}, "png": {}}


def write(split: Split, classes: tuple[str, ...], count: int, folder: Path, file_format: str) -> int:
    """Write `folder/<class>/<index>.<format>` for `count` evenly spread images of a split; says how many.

    Raises:
        DataError: the folder cannot be written.
    """
    if folder.exists():
        raise DataError(f"{folder}: is there already; remove it, or give another with --to")
    total = len(split.labels)
    indices = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            whole = Path(temporary, "whole")  # renamed at the end: half of it is never taken for all
            for index in indices:
                image = split.image(int(index))
                if image is None:
                    continue
                path = whole / classes[split.labels[index]] / f"{index:05}.{file_format}"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, **FORMATS[file_format])
            whole.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}; give another with --to") from error
    return len(indices) - len(skipped(split))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m alexnet_triton.training.pictures", description=__doc__)
    parser.add_argument("--data", default="fashion-mnist", help="fashion-mnist, or a folder with train/ and test/")
    parser.add_argument("--data-dir", type=Path, help="folder that holds Fashion-MNIST's archives")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--count", type=int, default=1000, help="images to write (default 1000)")
    parser.add_argument("--format", choices=FORMATS, default="jpeg")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        dataset = open_dataset(options.data, options.data_dir)
        split = dataset.train if options.split == "train" else dataset.test
        written = write(split, dataset.classes, options.count, options.to, options.format)
    except TrainingError as error:
        print(f"pictures: {error}", file=sys.stderr)
        return 1
    print(f"{written:,} {options.split} images of {dataset.name} in {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
