"""ReLU against tanh: the paper's figure 1, the epochs that a four-layer network takes to a training error."""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from alexnet_triton.training.claims.common import ClaimResult, Curve, Note, SmallDataset, draw_runs, train, with_spread
from alexnet_triton.training.log import from_zero, two_charts
from alexnet_triton.training.model import ACTIVATIONS, GAINS
from alexnet_triton.training.recipe import Recipe

IMAGES, EPOCHS, SEEDS = 10_000, 20, 3  # epochs at most
CHOOSING_EPOCHS = 3  # before the learning rate is chosen
POOLED_GAIN = 0.5  # the largest of nine values is about twice as far from zero as one; layers would multiply that
PAPER_DEVIATION = LAST_DEVIATION = 0.01
COLOURS = {"relu": "tab:blue", "tanh": "tab:orange"}


@dataclass(frozen=True)
class Conditions:
    """How pixels are scaled, how weights begin, and the learning rates to choose from."""

    name: str
    paper: bool
    learning_rates: tuple[float, ...]


PAPER = Conditions("as in 2012", True, (0.001, 0.002, 0.005, 0.01, 0.02))  # sections 2 and 5
RECIPE = Recipe("figure 1", 128, 0.01, weight_decay=0.0, schedule="plateau", augment=False)
FITTED = Conditions("pixels scaled and weights fitted", False, (0.01, 0.03, 0.1))


class FourLayers(nn.Sequential):
    """Three convolutions and a fully-connected layer: float [N, 3, 32, 32] to [N, classes]; no regularisation."""

    def __init__(self, activation: str, classes: int, paper: bool):
        make = ACTIVATIONS[activation]
        super().__init__(
            *(nn.Conv2d(3, 32, 5, padding=2), make(), nn.MaxPool2d(3, 2, padding=1)),  # 16 x 16
            *(nn.Conv2d(32, 32, 5, padding=2), make(), nn.MaxPool2d(3, 2, padding=1)),  # 8 x 8
            *(nn.Conv2d(32, 64, 5, padding=2), make(), nn.MaxPool2d(3, 2, padding=1)),  # 4 x 4
            *(nn.Flatten(), nn.Linear(64 * 4 * 4, classes)),
        )
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=PAPER_DEVIATION if paper else _fitting(layer, activation))
                nn.init.constant_(cast(Tensor, layer.bias), 0.0)


def _fitting(layer: nn.Conv2d | nn.Linear, activation: str) -> float:
    """The deviation of the weights that leaves the deviation of the signals unchanged."""
    if isinstance(layer, nn.Linear):
        return LAST_DEVIATION
    return POOLED_GAIN * GAINS[activation] / layer.weight[0].numel() ** 0.5


@dataclass(frozen=True)
class ActivationOutcome:
    """One activation under some conditions: its learning rate, and for each seed the curve and the epochs it took."""

    rate: float
    curves: list[Curve]
    epochs: list[float | None]  # to the target, None if the run did not reach it


Outcomes = dict[str, ActivationOutcome]  # by activation


def show(data: SmallDataset, folder: Path, note: Note) -> ClaimResult:
    data, target = data.first(IMAGES), threshold(data)
    runs = Runs(data, target, note)
    outcomes = {each.name: {name: runs.run(name, each) for name in ACTIVATIONS} for each in (PAPER, FITTED)}
    images = f"{len(data.train.labels):,} images of {data.name}"
    _draw(outcomes, target, images, folder / "activation.png")
    under = [f"{name}: {_line(of)}" for name, of in outcomes.items()]
    line = f"to {target:.0%} training error on {images}. {'. '.join(under)}"
    values = {
        "data": data.name,
        "training_images": len(data.train.labels),
        "threshold": target,
        "at_most": EPOCHS,
        "under": {name: _values(of) for name, of in outcomes.items()},
    }
    return ClaimResult("ReLU against tanh", line, "activation.png", values)


def threshold(data: SmallDataset) -> float:
    """25 % as in the paper, on CIFAR-10. 15 % on Fashion-MNIST, which passes 25 % within the first epoch."""
    return 0.15 if data.name == "fashion-mnist" else 0.25


@dataclass(frozen=True)
class Runs:
    """The trainings of the claim, and what they share."""

    data: SmallDataset
    target: float
    note: Note

    def run(self, activation: str, conditions: Conditions) -> ActivationOutcome:
        """A training a seed, with the learning rate that is best after a few epochs, as in the paper."""
        what = f"{activation}, {conditions.name}"
        self.note(f"{what}: learning rate")
        rates = conditions.learning_rates
        tried = [replace(RECIPE, learning_rate=rate, epochs=CHOOSING_EPOCHS, seed=99) for rate in rates]
        best = min(tried, key=lambda each: self._train(activation, conditions, each, 0.0)[-1][1])
        curves = []
        for seed in range(SEEDS):
            self.note(f"{what}: seed {seed}")
            curves.append(self._train(activation, conditions, replace(best, epochs=EPOCHS, seed=seed), self.target))
        return ActivationOutcome(best.learning_rate, curves, [_epochs_to(self.target, curve) for curve in curves])

    def _train(self, activation: str, conditions: Conditions, recipe: Recipe, target: float) -> Curve:
        """Five points an epoch, until the training error reaches the target."""
        torch.manual_seed(recipe.seed)
        network = FourLayers(activation, self.data.classes, conditions.paper)
        normalize = self.data.normalize(scaled=not conditions.paper)
        curve = []
        for point in train(network, normalize, self.data, _whole_image, recipe, windows=5):
            curve.append(point)
            if point[1] <= target:
                break
        return curve


def _whole_image(image: Image.Image, place: int) -> np.ndarray:
    """No crop: uint8 [32, 32, 3]."""
    return np.asarray(image)


def _epochs_to(target: float, curve: Curve) -> float | None:
    return next((epoch for epoch, error in curve if error <= target), None)


def _values(outcomes: Outcomes) -> dict[str, object]:
    return {
        "learning_rates": {name: of.rate for name, of in outcomes.items()},
        "epochs": {name: of.epochs for name, of in outcomes.items()},
        "last_errors": {name: [curve[-1][1] for curve in of.curves] for name, of in outcomes.items()},
    }


def _line(outcomes: Outcomes) -> str:
    reached = {name: [value for value in of.epochs if value is not None] for name, of in outcomes.items()}

    def describe(name: str) -> str:
        runs = len(outcomes[name].epochs)
        missed = runs - len(reached[name])
        took = f"{with_spread(reached[name], 1)} epochs" if reached[name] else ""
        missing = f"{missed} of {runs} not in {EPOCHS} epochs" if missed else ""
        return ", ".join(filter(None, [took, missing]))

    means = {name: statistics.mean(values) for name, values in reached.items() if values}
    times = f"; tanh takes {means['tanh'] / means['relu']:.1f} times as many" if len(means) == 2 else ""
    return f"ReLU {describe('relu')}, tanh {describe('tanh')}{times}"


def _draw(outcomes: dict[str, Outcomes], target: float, images: str, path: Path) -> None:
    with two_charts(path, f"four layers on {images}, a line a seed", share_y=True) as charts:
        for axes, (conditions, of) in zip(charts, outcomes.items(), strict=True):
            for name, outcome in of.items():
                draw_runs(axes, f"{name}, learning rate {outcome.rate:g}", outcome.curves, COLOURS[name])
            axes.axhline(target, color="grey", linestyle="--", linewidth=1)
            axes.set(title=conditions, xlabel="epochs", xlim=(0, None))
            from_zero(axes)
        charts[0].set_ylabel("training error")
