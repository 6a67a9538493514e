"""ReLU against tanh: the paper's figure 1, the epochs that a four-layer network takes to a training error."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from alexnet_triton.training.claims.common import ClaimResult, Note, SmallDataset, train, with_spread
from alexnet_triton.training.log import from_zero, new_figure, save_figure
from alexnet_triton.training.model import ACTIVATIONS, GAINS
from alexnet_triton.training.recipe import Recipe

POOLED_GAIN = 0.5  # the largest of nine values is about twice as far from zero as one; layers would multiply that
PAPER_DEVIATION = LAST_DEVIATION = 0.01
COLOURS = {"relu": "tab:blue", "tanh": "tab:orange"}

Curve = list[tuple[float, float]]  # epochs and training error


@dataclass(frozen=True)
class ActivationConfig:
    """How much is run."""

    images: int = 10_000
    epochs: int = 20  # at most
    choosing_epochs: int = 3  # before the learning rate is chosen
    seeds: int = 3


@dataclass(frozen=True)
class Conditions:
    """How pixels are scaled, how weights begin, and the learning rates to choose from."""

    name: str
    paper: bool
    learning_rates: tuple[float, ...]


PAPER = Conditions("as in 2012", True, (0.001, 0.002, 0.005, 0.01, 0.02))  # sections 2 and 5
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


def show(data: SmallDataset, config: ActivationConfig, folder: Path, note: Note) -> ClaimResult:
    data, target = data.first(config.images), threshold(data)
    outcomes: dict[str, Outcomes] = {
        conditions.name: {
            activation: _run(activation, conditions, data, config, target, note) for activation in ACTIVATIONS
        }
        for conditions in (PAPER, FITTED)
    }
    _draw(outcomes, target, data, folder / "activation.png")
    under = [f"{name}: {_line(of, config)}" for name, of in outcomes.items()]
    return ClaimResult(
        "ReLU against tanh",
        f"to {target:.0%} training error on {len(data.train.labels):,} images of {data.name}. {'. '.join(under)}",
        "activation.png",
        {
            "data": data.name,
            "training_images": len(data.train.labels),
            "threshold": target,
            "at_most": config.epochs,
            "under": {name: _values(of) for name, of in outcomes.items()},
        },
    )


def threshold(data: SmallDataset) -> float:
    """25 % as in the paper, on CIFAR-10. 15 % on Fashion-MNIST, which passes 25 % within the first epoch."""
    return 0.15 if data.name == "fashion-mnist" else 0.25


def _run(
    activation: str, conditions: Conditions, data: SmallDataset, config: ActivationConfig, target: float, note: Note
) -> ActivationOutcome:
    what = f"{activation}, {conditions.name}"
    note(f"{what}: learning rate")
    rate = _choose_learning_rate(activation, conditions, data, config.choosing_epochs)
    curves = []
    for seed in range(config.seeds):
        note(f"{what}: seed {seed}")
        curves.append(_train(activation, conditions, data, rate, seed, config.epochs, target))
    return ActivationOutcome(rate, curves, [_epochs_to(target, curve) for curve in curves])


def _choose_learning_rate(activation: str, conditions: Conditions, data: SmallDataset, epochs: int) -> float:
    """The rate with the least training error after a few epochs, chosen for each network as in the paper."""

    def error(rate: float) -> float:
        return _train(activation, conditions, data, rate, 99, epochs, 0.0)[-1][1]

    return min(conditions.learning_rates, key=error)


def _train(
    activation: str, conditions: Conditions, data: SmallDataset, rate: float, seed: int, epochs: int, target: float
) -> Curve:
    """Five points an epoch, until the training error reaches the target."""
    torch.manual_seed(seed)
    network = FourLayers(activation, data.classes, conditions.paper)
    recipe = Recipe("figure 1", 128, rate, weight_decay=0.0, schedule="plateau", augment=False, seed=seed)
    normalize = data.normalize(scaled=not conditions.paper)
    curve = []
    for epoch, error in train(network, data, _whole_image, recipe, epochs, windows=5, normalize=normalize):
        curve.append((epoch, error))
        if error <= target:
            break
    return curve


def _whole_image(image: Image.Image, place: int) -> np.ndarray:
    """No crop: uint8 [32, 32, 3]."""
    return np.asarray(image)


def _epochs_to(target: float, curve: Curve) -> float | None:
    return next((epoch for epoch, error in curve if error <= target), None)


def _values(outcomes: Outcomes) -> dict[str, object]:
    return {
        "learning_rates": {name: outcome.rate for name, outcome in outcomes.items()},
        "epochs": {name: outcome.epochs for name, outcome in outcomes.items()},
        "last_errors": {name: [curve[-1][1] for curve in outcome.curves] for name, outcome in outcomes.items()},
    }


def _line(outcomes: Outcomes, config: ActivationConfig) -> str:
    reached = {name: [value for value in of.epochs if value is not None] for name, of in outcomes.items()}

    def describe(name: str) -> str:
        runs = len(outcomes[name].epochs)
        missed = runs - len(reached[name])
        took = f"{with_spread(reached[name], 1)} epochs" if reached[name] else ""
        missing = f"{missed} of {runs} not in {config.epochs} epochs" if missed else ""
        return ", ".join(filter(None, [took, missing]))

    means = {name: statistics.mean(values) for name, values in reached.items() if values}
    times = f"; tanh takes {means['tanh'] / means['relu']:.1f} times as many" if len(means) == 2 else ""
    return f"ReLU {describe('relu')}, tanh {describe('tanh')}{times}"


def _draw(outcomes: dict[str, Outcomes], target: float, data: SmallDataset, path: Path) -> None:
    figure = new_figure(9, 3.8, f"four layers on {len(data.train.labels):,} images of {data.name}, a line a seed")
    panels = figure.subplots(1, len(outcomes), sharey=True)
    for axes, (conditions, of) in zip(panels, outcomes.items(), strict=True):
        for name, outcome in of.items():
            for number, curve in enumerate(outcome.curves):
                label = f"{name}, learning rate {outcome.rate:g}" if number == 0 else None
                axes.plot(*zip(*curve, strict=True), color=COLOURS[name], alpha=0.8, label=label)
        axes.axhline(target, color="grey", linestyle="--", linewidth=1)
        axes.set(title=conditions, xlabel="epochs", xlim=(0, None))
        axes.legend()
        axes.grid(alpha=0.3)
        from_zero(axes)
    panels[0].set_ylabel("training error")
    save_figure(figure, path)
