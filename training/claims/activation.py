"""ReLU against tanh: the paper's figure 1, the epochs that a four-layer network takes to a training error."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from alexnet_triton.training.claims import (
    ClaimResult,
    Curve,
    Note,
    SmallDataset,
    draw_runs,
    train,
    verdict,
    with_spread,
)
from alexnet_triton.training.log import from_zero, two_charts
from alexnet_triton.training.model import ACTIVATIONS, GAINS
from alexnet_triton.training.recipe import Recipe

POOLED_GAIN = 0.5  # the largest of nine values is about twice as far from zero as one; layers would multiply that
PAPER_DEVIATION = LAST_DEVIATION = 0.01
COLOURS = {"relu": "tab:blue", "tanh": "tab:orange"}


PAPER = "as in 2012"  # pixels and weights of sections 2 and 5
FITTED = "pixels scaled and weights fitted"


@dataclass(frozen=True)
class ActivationConditions:
    """What is run, and what counts as shown."""

    images: int
    batch: int
    epochs: int  # at most
    seeds: int
    choosing_epochs: int  # before the learning rate is chosen
    learning_rates: dict[str, list[float]]  # to choose from, ascending, under PAPER and FITTED
    extensions: int  # more learning rates at most, while the best one is at an edge
    target_errors: dict[str, float]  # on the training images, by the name of the data or for `others`
    shown_above_times: float  # tanh takes as many times the epochs of ReLU with every seed


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

    tried: dict[float, float]  # learning rate -> training error after the choosing epochs
    curves: list[Curve]
    epochs: list[float | None]  # to the target, None if the run did not reach it

    @property
    def rate(self) -> float:
        return best_rate(self.tried)

    @property
    def at_edge(self) -> bool:
        return self.rate in (min(self.tried), max(self.tried))


Outcomes = dict[str, ActivationOutcome]  # by activation


def show(data: SmallDataset, conditions: ActivationConditions, picture: Path, note: Note) -> ClaimResult:
    data, targets = data.first(conditions.images), conditions.target_errors
    target = targets.get(data.name, targets["others"])
    runs = Runs(data, conditions, target, note)
    outcomes = {under: {name: runs.run(name, under) for name in ACTIVATIONS} for under in (PAPER, FITTED)}
    images = f"{len(data.train.labels):,} images of {data.name}"
    _draw(outcomes, target, images, picture)
    under = [f"{name}: {_line(of, conditions.epochs)}" for name, of in outcomes.items()]
    line = f"to {target:.0%} training error on {images}. {'. '.join(under)}"
    values = {
        "data": data.name,
        "training_images": len(data.train.labels),
        "threshold": target,
        "under": {name: _values(of) for name, of in outcomes.items()},
    }
    verdicts = {name: decide(of, conditions.shown_above_times) for name, of in outcomes.items()}
    return ClaimResult("ReLU against tanh", verdicts, line, values)


def decide(outcomes: Outcomes, above: float) -> str:
    """Whether tanh takes more than `above` times the epochs of ReLU with every seed.

    Nothing is decided where the best learning rate of either is at the edge of those that were tried.
    """
    for name, of in outcomes.items():
        if of.at_edge:
            return f"not decided: the best rate of {name}, {of.rate:g}, is at the edge of its grid"
    relu, tanh = (
        [math.inf if value is None else value for value in outcomes[name].epochs] for name in ("relu", "tanh")
    )
    if math.isinf(min(relu + tanh)):
        return "not decided: no run reached the target"
    return verdict([slow / fast for slow, fast in zip(tanh, relu, strict=True)], above)


def best_rate(tried: Mapping[float, float]) -> float:
    """The learning rate of the lowest error; of equal ones, the first that was tried."""
    return min(tried, key=lambda rate: tried[rate])


def try_rates(rates: Sequence[float], extensions: int, error_at: Callable[[float], float]) -> dict[float, float]:
    """The error at each learning rate, and at rates beyond the edge while the best one is there.

    Args:
        rates: at least two, ascending. Each new one continues the ratio of the last two.
        extensions: new ones at most.
    """
    tried = {rate: error_at(rate) for rate in rates}
    for _ in range(extensions):
        ordered = sorted(tried)
        best = best_rate(tried)
        if best not in (ordered[0], ordered[-1]):
            break
        neighbour = ordered[1] if best == ordered[0] else ordered[-2]
        beyond = float(f"{best * best / neighbour:.3g}")
        tried[beyond] = error_at(beyond)
    return tried


@dataclass(frozen=True)
class Runs:
    """The trainings of the claim, and what they share."""

    data: SmallDataset
    conditions: ActivationConditions
    target: float
    note: Note

    def run(self, activation: str, under: str) -> ActivationOutcome:
        """A training a seed, with the learning rate that is best after a few epochs, as in the paper."""
        conditions = self.conditions

        def error_at(rate: float) -> float:
            self.note(f"{activation}, {under}: learning rate {rate:g}")
            return self._train(activation, under, self._recipe(rate, conditions.choosing_epochs, 99), 0.0)[-1][1]

        tried = try_rates(conditions.learning_rates[under], conditions.extensions, error_at)
        curves = []
        for seed in range(conditions.seeds):
            self.note(f"{activation}, {under}: seed {seed}")
            recipe = self._recipe(best_rate(tried), conditions.epochs, seed)
            curves.append(self._train(activation, under, recipe, self.target))
        return ActivationOutcome(tried, curves, [_epochs_to(self.target, curve) for curve in curves])

    def _recipe(self, rate: float, epochs: int, seed: int) -> Recipe:
        plain = Recipe("figure 1", self.conditions.batch, rate, weight_decay=0.0, schedule="plateau", augment=False)
        return replace(plain, epochs=epochs, seed=seed)

    def _train(self, activation: str, under: str, recipe: Recipe, target: float) -> Curve:
        """Five points an epoch, until the training error reaches the target."""
        torch.manual_seed(recipe.seed)
        network = FourLayers(activation, self.data.classes, under == PAPER)
        normalize = self.data.normalize(scaled=under != PAPER)
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
        "tried": {name: dict(sorted(of.tried.items())) for name, of in outcomes.items()},
        "epochs": {name: of.epochs for name, of in outcomes.items()},
        "last_errors": {name: [curve[-1][1] for curve in of.curves] for name, of in outcomes.items()},
    }


def _line(outcomes: Outcomes, at_most: int) -> str:
    reached = {name: [value for value in of.epochs if value is not None] for name, of in outcomes.items()}

    def describe(name: str) -> str:
        runs = len(outcomes[name].epochs)
        missed = runs - len(reached[name])
        took = f"{with_spread(reached[name], 1)} epochs" if reached[name] else ""
        missing = f"{missed} of {runs} not in {at_most} epochs" if missed else ""
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
