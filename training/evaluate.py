"""Top-1, top-5 and their errors: python -m alexnet_triton.training.evaluate artifacts/checkpoint.pt --data fashion-mnist --crops 10.

Exit codes: 0 evaluated; 1 bad data or checkpoint; 2 wrong command line.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alexnet_triton.common import files, provenance
from alexnet_triton.training import checkpoint, log
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import SPLITS, Split, open_dataset
from alexnet_triton.training.device import (
    PRECISIONS,
    Group,
    join,
    keep_freed_memory,
    mixed_precision,
    pick_device,
    pick_precision,
    place,
)
from alexnet_triton.training.errors import DataError, TrainingError
from alexnet_triton.training.loading import CROPS, Crop, batches, in_order
from alexnet_triton.training.log import progress_bar
from alexnet_triton.training.model import Normalize

# WAS alexnet_triton.training.evaluate: Answers of a network on a whole split, and what they are worth.


BATCH = 100


@dataclass(frozen=True)
class Accuracy:
    """Parts of the images whose label is the most probable, and among the five most probable."""

    top1: float
    top5: float
    images: int

    def __str__(self) -> str:
        return f"top-1 {self.top1:.4f}, top-5 {self.top5:.4f} on {self.images:,} images"


def accuracy(scores: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Scores float [N, classes] (logits or probabilities) against labels int64 [N]."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    hits = best == labels[:, None]
    return Accuracy(float(hits[:, 0].mean()), float(hits.any(axis=1).mean()), len(labels))


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p of the label, in nats."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)).mean())


def predict(
    network: nn.Module,
    normalize: Normalize,
    split: Split,
    cut: Crop,
    *,
    precision: str = "auto",
    group: Group | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 [N, classes] and labels int64 [N] of all images that are not damaged, in order.

    `cut` makes one view of an image, [S, S, 3], or several, [V, S, S, 3], whose probabilities are averaged.
    The processes of a group share the batches out and all get all answers, the same bits as one process;
    `advance` hears of each batch done.
    """
    device, group = pick_device(), group or Group()
    place(network, device)
    network.eval()
    normalize.to(device)
    mine = islice(in_order(len(split.labels), BATCH), group.rank, None, group.world)
    answers = []
    for images, labels in batches(split, mine, cut):
        answers.append((_probabilities(network, normalize, images, len(labels), device, precision), labels.numpy()))
        advance(len(labels) * group.world)
    return merge(group.gather(answers))


def _probabilities(
    network: nn.Module, normalize: Normalize, images: Tensor, count: int, device: torch.device, precision: str
) -> np.ndarray:
    """uint8 [B, S, S, 3] or [B, V, S, S, 3] to the means over V views, float32 [B, classes]."""
    if not count:  # all of these images are damaged
        return np.empty((0, 0), np.float32)
    parts = []
    with torch.inference_mode(), mixed_precision(device, precision):
        for views in images.flatten(0, -4).split(BATCH):
            parts.append(network(normalize(views.to(device))).float().softmax(dim=1))
    return torch.cat(parts).unflatten(0, (count, -1)).mean(dim=1).cpu().numpy()


def merge(by_rank: list[list[tuple[np.ndarray, np.ndarray]]]) -> tuple[np.ndarray, np.ndarray]:
    """Batches of all ranks, dealt out in turn, put together again."""
    rounds = max(map(len, by_rank))
    dealt = [answers[turn] for turn in range(rounds) for answers in by_rank if turn < len(answers)]
    dealt = [(scores, labels) for scores, labels in dealt if len(labels)]
    return np.concatenate([scores for scores, _ in dealt]), np.concatenate([labels for _, labels in dealt])


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts by label and answer, int64 [classes, classes]."""
    classes = probabilities.shape[1]
    return np.bincount(labels * classes + probabilities.argmax(axis=1), minlength=classes**2).reshape(classes, classes)


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
        **provenance.describe_run(("torch", "numpy", "pillow")),
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
        prog="python -m alexnet_triton.training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
                log.draw_confusion(counts, trained.classes, options.confusion)
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
