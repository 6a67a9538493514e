"""Top-1, top-5 and their errors: python -m training.evaluate artifacts/checkpoint.pt --data fashion-mnist --crops 10.

Exit codes: 0 evaluated; 1 bad data or checkpoint; 2 wrong command line.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from training import checkpoint, curves, files, machine
from training.checkpoint import Checkpoint
from training.crops import CROPS
from training.data import SPLITS, open_dataset
from training.device import PRECISIONS, keep_freed_memory, pick_device, pick_precision
from training.distributed import Group, join
from training.errors import DataError, TrainingError
from training.model import Normalize
from training.progress import progress_bar
from training.scores import Accuracy, accuracy, confusion, predict


def evaluate(options: argparse.Namespace, group: Group) -> tuple[Accuracy, np.ndarray, Checkpoint]:
    """Accuracy and confusion of a checkpoint on a data set.

    Raises:
        TrainingError: one of them cannot be read, or their classes differ.
    """
    trained = checkpoint.load(options.checkpoint)
    network = trained.build()
    dataset = open_dataset(options.data, options.data_dir)
    if dataset.classes != trained.classes:
        raise DataError(
            f"{options.data}: its {len(dataset.classes)} classes are not the {len(trained.classes)} of "
            f"{options.checkpoint}; give the data that it was trained on"
        )
    split = dataset.train if options.split == "train" else dataset.test
    cut = CROPS[options.crops](trained.network.input_size)
    with progress_bar(group.is_first) as progress:
        task = progress.add_task("testing", total=len(split.labels), note="")
        probabilities, labels = predict(
            network,
            Normalize(trained.mean, trained.std),
            split,
            cut,
            precision=options.precision,
            group=group,
            advance=lambda images: progress.advance(task, images),
        )
    return accuracy(probabilities, labels), confusion(probabilities, labels), trained


def report(measured: Accuracy, counts: np.ndarray, trained: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    """All figures, for a file."""
    return {
        "checkpoint": str(options.checkpoint),
        "data": options.data,
        "split": options.split,
        "crops": options.crops,
        "precision": pick_precision(options.precision, pick_device()),
        **asdict(measured),
        "top1_error": 1 - measured.top1,
        "top5_error": 1 - measured.top5,
        "classes": trained.classes,
        "confusion": counts.tolist(),
        **machine.describe(),
    }


def table(measured: Accuracy, options: argparse.Namespace) -> str:
    crops = "the central crop" if options.crops == 1 else f"{options.crops} crops"
    return (
        f"{options.checkpoint} on {measured.images:,} {options.split} images of {options.data}, {crops}\n"
        f"        accuracy   error\n"
        f"top-1   {measured.top1:8.4f}   {1 - measured.top1:.4f}\n"
        f"top-5   {measured.top5:8.4f}   {1 - measured.top5:.4f}"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True, help="fashion-mnist, cifar10, or a folder of photographs")
    parser.add_argument("--data-dir", type=Path, help="folder that holds the archives of fashion-mnist or cifar10")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--crops", type=int, choices=CROPS, default=1, help="views an image, averaged (default 1)")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto")
    parser.add_argument("--confusion", type=Path, metavar="PNG", help="write the confusion matrix as a picture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    keep_freed_memory()
    try:
        with join() as group:
            measured, counts, trained = evaluate(options, group)
            if not group.is_first:
                return 0
            if options.confusion:
                curves.draw_confusion(counts, trained.classes, options.confusion)
            if options.json:
                figures = report(measured, counts, trained, options)
                files.write_text(options.json, json.dumps(figures, indent=2) + "\n")
    except (TrainingError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(table(measured, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
