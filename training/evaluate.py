"""Answers of a network on a whole split, and the command `alexnet-triton evaluate`, which measures their accuracy."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from alexnet_triton.common import files, provenance
from alexnet_triton.common.command import Parser, finish
from alexnet_triton.imaging import sheet
from alexnet_triton.training import checkpoint, device
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import (
    SPLITS,
    Split,
    add_data_options,
    answered,
    damaged_paths,
    name_of,
    open_dataset,
)
from alexnet_triton.training.device import PRECISIONS, Group
from alexnet_triton.training.errors import DataError
from alexnet_triton.training.loading import CROPS, Crop, batches, in_order
from alexnet_triton.training.log import Accuracy, accuracy, confusion, draw_confusion, progress_bar
from alexnet_triton.training.model import Normalize

PROG = "alexnet-triton evaluate"
BATCH = 100
WORST = 100  # mistakes on a page
SHOWN_CLASSES = 3  # of each


def predict(
    network: nn.Module,
    normalize: Normalize,
    split: Split,
    crop: Crop,
    *,
    precision: str = "auto",
    group: Group | None = None,
    progress: Progress | None = None,
    what: str = "testing",
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities float32 [N, classes] and labels int64 [N] of all images that are not damaged, in order.

    The processes of a group share the batches, and each gets all answers: the same bits as from one process.

    Args:
        crop: makes one view of an image, [S, S, 3], or several, [V, S, S, 3], whose probabilities are averaged.
        progress: shows a bar called `what` meanwhile.
    """
    target, group = device.pick_device(), group or Group()
    device.place(network, target)
    network.eval()
    normalize.to(target)
    mine = islice(in_order(len(split.labels), BATCH), group.rank, None, group.world)
    progress = progress or progress_bar(visible=False)
    task = progress.add_task(what, total=len(split.labels), note="")
    answers = []
    for images, labels in batches(split, mine, crop):
        answers.append((_probabilities(network, normalize, images, len(labels), target, precision), labels.numpy()))
        progress.advance(task, len(labels) * group.world)
    progress.remove_task(task)
    return merge(group.gather(answers))


def _probabilities(
    network: nn.Module, normalize: Normalize, images: Tensor, count: int, target: torch.device, precision: str
) -> np.ndarray:
    """uint8 [B, S, S, 3] or [B, V, S, S, 3] to the means over V views, float32 [B, classes]."""
    if not count:  # all of these images are damaged
        return np.empty((0, 0), np.float32)
    answers = []
    with torch.inference_mode(), device.mixed_precision(target, precision):
        for views in images.flatten(0, -4).split(BATCH):
            answers.append(network(normalize(views.to(target))).float().softmax(dim=1))
    return torch.cat(answers).unflatten(0, (count, -1)).mean(dim=1).cpu().numpy()


def merge(by_rank: list[list[tuple[np.ndarray, np.ndarray]]]) -> tuple[np.ndarray, np.ndarray]:
    """Put the batches of all ranks, which took them in turn, together in order."""
    in_turn = [batch for turn in zip_longest(*by_rank) for batch in turn if batch is not None]
    scores, labels = zip(*[batch for batch in in_turn if len(batch[1])], strict=True)
    return np.concatenate(scores), np.concatenate(labels)


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description="Top-1, top-5 and their errors on a whole split.")
    parser.add_argument("checkpoint", type=Path)
    add_data_options(parser, default=None)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--crops", type=int, choices=CROPS, default=1, help="views an image, averaged (default 1)")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto")
    parser.add_argument("--confusion", type=Path, metavar="PNG", help="write the confusion matrix as a picture")
    parser.add_argument("--mistakes", type=Path, metavar="HTML", help=f"write a page of the {WORST} surest mistakes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_args(words)
    return finish(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    device.keep_freed_memory()
    with device.join() as group:
        trained = checkpoint.load(options.checkpoint)
        split = _open_split(options, trained)
        probabilities, labels = _predict_split(options, trained, split, group)
        damaged: frozenset[Path] = frozenset().union(*group.gather(damaged_paths(split)))
    if not group.is_first:
        return
    measured, counts = accuracy(probabilities, labels), confusion(probabilities, labels)
    if options.confusion:
        draw_confusion(counts, trained.classes, options.confusion)
    if options.mistakes:
        write_mistakes(options.mistakes, split, answered(split, damaged), probabilities, trained.classes)
    if options.json:
        files.write_json(options.json, _report(measured, counts, trained, options))
    print(_table(measured, options))


def _open_split(options: argparse.Namespace, trained: Checkpoint) -> Split:
    dataset = open_dataset(options.data, options.data_dir)
    if dataset.classes != trained.classes:
        raise DataError(
            f"{options.data}: its {len(dataset.classes)} classes are not the {len(trained.classes)} of "
            f"{options.checkpoint}; give the data that it was trained on"
        )
    return dataset.train if options.split == "train" else dataset.test


def _predict_split(
    options: argparse.Namespace, trained: Checkpoint, split: Split, group: Group
) -> tuple[np.ndarray, np.ndarray]:
    normalize, crop = Normalize(trained.mean, trained.std), CROPS[options.crops](trained.network.input_size)
    with progress_bar(group.is_first) as progress:
        return predict(
            trained.build(), normalize, split, crop, precision=options.precision, group=group, progress=progress
        )


def write_mistakes(
    path: Path, split: Split, indices: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> None:
    """A page of the wrong answers that the network is surest of, at most `WORST`, with what each image shows.

    Args:
        indices: of the images in the split, int64 [N].
        probabilities: the answers to them, float32 [N, classes].

    Raises:
        WriteError: it cannot be written.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != split.labels[indices])
    worst = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:WORST]
    entries = [_mistake(split, int(indices[row]), probabilities[row], classes) for row in worst]
    heading = f"The {len(entries)} surest of {len(wrong):,} mistakes in {len(indices):,} images"
    sheet.write_page(path, heading, entries, order="most")


def _mistake(split: Split, index: int, probabilities: np.ndarray, classes: Sequence[str]) -> sheet.Entry:
    best = np.argsort(-probabilities, kind="stable")[:SHOWN_CLASSES]
    answers = [(classes[each], float(probabilities[each])) for each in best]
    image = split.image(index)
    thumbnail = sheet.to_jpeg(sheet.reduced(image, sheet.THUMBNAIL_SIDE)) if image else b""
    return sheet.Entry(name_of(split, index), answers, truth=classes[split.labels[index]], thumbnail=thumbnail)


def _report(measured: Accuracy, counts: np.ndarray, trained: Checkpoint, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "checkpoint": str(options.checkpoint),
        "data": options.data,
        "split": options.split,
        "crops": options.crops,
        "precision": device.pick_precision(options.precision, device.pick_device()),
        **asdict(measured),
        "top1_error": 1 - measured.top1,
        "top5_error": 1 - measured.top5,
        "classes": trained.classes,
        "confusion": counts.tolist(),
        **provenance.describe_run(("torch", "numpy", "pillow")),
    }


def _table(measured: Accuracy, options: argparse.Namespace) -> str:
    crops = "the central crop" if options.crops == 1 else f"{options.crops} crops"
    return (
        f"{options.checkpoint} on {measured.images:,} {options.split} images of {options.data}, {crops}\n"
        f"        accuracy   error\n"
        f"top-1   {measured.top1:8.4f}   {1 - measured.top1:.4f}\n"
        f"top-5   {measured.top5:8.4f}   {1 - measured.top5:.4f}"
    )
