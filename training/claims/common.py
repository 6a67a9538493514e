"""What the claims share: small data, one training of a network, and figures with their spread."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from alexnet_triton.training.data import ArraySplit, Dataset, Split
from alexnet_triton.training.loading import Crop
from alexnet_triton.training.model import Normalize
from alexnet_triton.training.recipe import Recipe
from alexnet_triton.training.trainer import RunningMetrics, Trainer

SIDE = 32  # pixels that images are held at

Advance = Callable[[str], None]


@dataclass(frozen=True)
class Figures:
    """What one claim came to: a line for people, and everything for the report."""

    claim: str
    line: str
    picture: str
    values: dict[str, object]
    seconds: float = 0.0


@dataclass(frozen=True)
class Images:
    """A data set held small: training and test images uint8 [N, 32, 32, 3]."""

    name: str
    classes: int
    train: ArraySplit
    test: ArraySplit

    def normalize(self, scaled: bool = True) -> Normalize:
        """By the mean and the deviation of each channel; the mean alone, as in 2012, where not `scaled`."""
        pixels = self.train.images[:2000].reshape(-1, 3)
        mean, std = pixels.mean(axis=0), np.maximum(pixels.std(axis=0), 1.0) if scaled else np.ones(3)
        return Normalize(tuple(mean.tolist()), tuple(std.tolist()))

    def part(self, train_images: int) -> "Images":
        """With the first of the training images alone; they are in random order."""
        train = ArraySplit(self.train.images[:train_images], self.train.labels[:train_images])
        return Images(self.name, self.classes, train, self.test)


def hold(dataset: Dataset, train_images: int, test_images: int) -> Images:
    """A random part of a data set, the same in every run, at 32 x 32 pixels."""
    train, test = _hold(dataset.train, train_images, 1), _hold(dataset.test, test_images, 2)
    return Images(dataset.name, len(dataset.classes), train, test)


def _hold(split: Split, count: int, seed: int) -> ArraySplit:
    indices = np.random.default_rng(seed).permutation(len(split.labels))[:count]
    opened = [(split.image(int(index)), split.labels[index]) for index in indices]
    images = [np.asarray(image.convert("RGB").resize((SIDE, SIDE))) for image, _ in opened if image is not None]
    return ArraySplit(np.stack(images), np.array([label for image, label in opened if image is not None]))


def whole_image(image: Image.Image, place: int) -> np.ndarray:
    """No crop at all: uint8 [32, 32, 3]."""
    return np.asarray(image)


def train(
    network: nn.Module,
    images: Images,
    cut: Crop,
    recipe: Recipe,
    epochs: int,
    windows: int = 1,
    normalize: Normalize | None = None,
) -> Iterable[tuple[float, float, float]]:
    """Train a network in place; `windows` times an epoch the epochs so far, the mean loss and the training error."""
    torch.manual_seed(recipe.seed)
    trainer = Trainer(network, normalize or images.normalize(), images.train, cut, replace(recipe, epochs=epochs))
    window = max(trainer.steps_per_epoch // windows, 1)
    while not trainer.finished:
        sums = RunningMetrics()
        for step in trainer.epoch():
            sums.merge(step)
            if trainer.position.steps % window == 0:
                yield trainer.position.steps / trainer.steps_per_epoch, sums.mean_loss, 1 - sums.hits / sums.images
                sums = RunningMetrics()


def spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"mean": statistics.mean(values), "least": min(values), "most": max(values)}


def shown(values: Iterable[float], digits: int = 3) -> str:
    """`0.412 (0.405 to 0.420)`."""
    of = spread(values)
    return f"{of['mean']:.{digits}f} ({of['least']:.{digits}f} to {of['most']:.{digits}f})"


def picture_path(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.png"
