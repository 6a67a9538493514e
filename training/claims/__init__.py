"""The 2012 paper's claims on a small machine: what they share, from the data set to figures with their spread."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from alexnet_triton.training.data import ArraySplit, Dataset, Split
from alexnet_triton.training.loading import Crop
from alexnet_triton.training.model import Normalize
from alexnet_triton.training.recipe import Recipe
from alexnet_triton.training.trainer import RunningMetrics, Trainer

SIDE = 32  # height and width of the images, in pixels

Note = Callable[[str], None]  # is told what runs now
Curve = Sequence[tuple[float, float]]  # epochs so far and training error


@dataclass(frozen=True)
class ClaimResult:
    """The result of one claim: a verdict on each of its statements, a line for people, and all figures."""

    claim: str
    verdicts: dict[str, str]  # by statement
    line: str
    values: dict[str, object]


def verdict(gains: Sequence[float], above: float) -> str:
    """`shown` if the gain with every seed is above the bar, `not shown` if none is; else the seeds disagree."""
    over = [gain > above for gain in gains]
    if any(over) and not all(over):
        return "not decided: the seeds disagree"
    return "shown" if all(over) else "not shown"


@dataclass(frozen=True)
class SmallDataset:
    """Training and test images uint8 [N, 32, 32, 3]."""

    name: str
    classes: int
    train: ArraySplit
    test: ArraySplit

    def normalize(self, scaled: bool = True) -> Normalize:
        """By the mean and the deviation of each channel, or by the mean alone, as in 2012, if not `scaled`."""
        pixels = self.train.images[:2000].reshape(-1, 3)
        mean, std = pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 1.0) if scaled else np.ones(3)
        return Normalize(tuple(mean.tolist()), tuple(std.tolist()))

    def first(self, train_images: int) -> "SmallDataset":
        """With the first training images alone; they are in random order."""
        return replace(self, train=ArraySplit(self.train.images[:train_images], self.train.labels[:train_images]))


def shrink(dataset: Dataset, train_images: int, test_images: int) -> SmallDataset:
    """Random images of a data set, the same in every run, at 32 x 32 pixels."""
    train, test = _sample(dataset.train, train_images, 1), _sample(dataset.test, test_images, 2)
    return SmallDataset(dataset.name, len(dataset.classes), train, test)


def _sample(split: Split, count: int, seed: int) -> ArraySplit:
    indices = np.random.default_rng(seed).permutation(len(split.labels))[:count]
    opened = [(split.image(int(index)), split.labels[index]) for index in indices]
    images = [np.asarray(image.convert("RGB").resize((SIDE, SIDE))) for image, _ in opened if image is not None]
    return ArraySplit(np.stack(images), np.array([label for image, label in opened if image is not None]))


def train(
    network: nn.Module, normalize: Normalize, data: SmallDataset, crop: Crop, recipe: Recipe, windows: int = 1
) -> Iterator[tuple[float, float]]:
    """Train a network in place. Yields the points of its curve, `windows` an epoch."""
    torch.manual_seed(recipe.seed)
    trainer = Trainer(network, normalize, data.train, crop, recipe)
    window = max(trainer.steps_per_epoch // windows, 1)
    while not trainer.finished:
        metrics = RunningMetrics()
        for step in trainer.epoch():
            metrics.merge(step)
            if trainer.position.steps % window == 0:
                yield trainer.position.steps / trainer.steps_per_epoch, 1 - metrics.hits / metrics.images
                metrics = RunningMetrics()


def draw_runs(axes: Any, label: str, curves: Iterable[Curve], colour: str) -> None:
    """A line a run, all in one colour."""
    for number, curve in enumerate(curves):
        axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.8, label=label if number == 0 else None)


def with_spread(values: Iterable[float], digits: int = 3) -> str:
    """`0.412 (0.405 to 0.420)`: mean, least and most."""
    values = list(values)
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
