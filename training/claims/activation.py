"""ReLU against tanh: the paper's figure 1, epochs of a four-layer network to a training error."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from alexnet_triton.common import files
from alexnet_triton.training.claims.common import (
    Advance,
    Figures,
    Images,
    picture_path,
    shown,
    spread,
    train,
    whole_image,
)
from alexnet_triton.training.log import from_zero
from alexnet_triton.training.model import ACTIVATIONS, GAINS
from alexnet_triton.training.recipe import Recipe

CHOOSING_EPOCHS = 3
POOLED_GAIN = 0.5  # the largest of nine is about twice as far from zero as one, which would add up over the layers
PAPER_DEVIATION = LAST_DEVIATION = 0.01
COLOURS = {"relu": "tab:blue", "tanh": "tab:orange"}


@dataclass(frozen=True)
class Size:
    """How much of it is run."""

    images: int = 10_000
    epochs: int = 20  # at most
    seeds: int = 3


@dataclass(frozen=True)
class Conditions:
    """How pixels come in, how weights begin, and the learning rates that are tried."""

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
    """The deviation at which signals keep theirs through the layers."""
    if isinstance(layer, nn.Linear):
        return LAST_DEVIATION
    return POOLED_GAIN * GAINS[activation] / layer.weight[0].numel() ** 0.5


def threshold(images: Images) -> float:
    """25 % as in the paper, on CIFAR-10; 15 % on Fashion-MNIST, where 25 % is passed within the first epoch."""
    return 0.15 if images.name == "fashion-mnist" else 0.25


@dataclass(frozen=True)
class Outcome:
    """Of one activation under some conditions: its learning rate, and of each seed (epochs, error) on the way."""

    rate: float
    runs: list[list[tuple[float, float]]]

    def epochs_to(self, target: float) -> list[float | None]:
        return [_epochs_to(target, run) for run in self.runs]


Outcomes = dict[str, dict[str, Outcome]]  # by the name of the conditions and of the activation


def show(images: Images, size: Size, folder: Path, advance: Advance) -> Figures:
    part, target = images.part(size.images), threshold(images)
    outcomes: Outcomes = {
        conditions.name: {
            activation: _outcome(activation, conditions, part, size, target, advance) for activation in ACTIVATIONS
        }
        for conditions in (PAPER, FITTED)
    }
    _draw(outcomes, target, part, picture_path(folder, "activation"))
    under = [f"{name}: {_line(of, target, size)}" for name, of in outcomes.items()]
    return Figures(
        "ReLU against tanh",
        f"to {target:.0%} training error on {len(part.train.labels):,} images of {part.name}. {'. '.join(under)}",
        "activation.png",
        {
            "data": part.name,
            "training_images": len(part.train.labels),
            "threshold": target,
            "at_most": size.epochs,
            "under": {name: _values(of, target) for name, of in outcomes.items()},
        },
    )


def _outcome(
    activation: str, conditions: Conditions, images: Images, size: Size, target: float, advance: Advance
) -> Outcome:
    what = f"{activation}, {conditions.name}"
    advance(f"{what}: learning rate")
    rate = _choose_learning_rate(activation, conditions, images)
    runs = []
    for seed in range(size.seeds):
        advance(f"{what}: seed {seed}")
        runs.append(_errors(activation, conditions, images, rate, seed, size.epochs, target))
    return Outcome(rate, runs)


def _errors(
    activation: str, conditions: Conditions, images: Images, rate: float, seed: int, epochs: int, target: float
) -> list[tuple[float, float]]:
    """Epochs and training error five times an epoch, until the target is passed."""
    torch.manual_seed(seed)
    network = FourLayers(activation, images.classes, conditions.paper)
    recipe = Recipe("figure 1", 128, rate, weight_decay=0.0, schedule="plateau", augment=False, seed=seed)
    normalize = images.normalize(scaled=not conditions.paper)
    seen = []
    for epoch, _, error in train(network, images, whole_image, recipe, epochs, windows=5, normalize=normalize):
        seen.append((epoch, error))
        if error <= target:
            break
    return seen


def _choose_learning_rate(activation: str, conditions: Conditions, images: Images) -> float:
    """The one with the least training error after a few epochs, chosen for each network as in the paper."""

    def error(rate: float) -> float:
        return _errors(activation, conditions, images, rate, 99, CHOOSING_EPOCHS, 0.0)[-1][1]

    return min(conditions.learning_rates, key=error)


def _epochs_to(target: float, run: list[tuple[float, float]]) -> float | None:
    return next((epoch for epoch, error in run if error <= target), None)


def _values(outcomes: dict[str, Outcome], target: float) -> dict[str, object]:
    return {
        "learning_rates": {name: outcome.rate for name, outcome in outcomes.items()},
        "epochs": {name: outcome.epochs_to(target) for name, outcome in outcomes.items()},
        "last_errors": {name: [run[-1][1] for run in outcome.runs] for name, outcome in outcomes.items()},
    }


def _line(outcomes: dict[str, Outcome], target: float, size: Size) -> str:
    epochs = {name: outcome.epochs_to(target) for name, outcome in outcomes.items()}
    arrived = {name: [value for value in of if value is not None] for name, of in epochs.items()}

    def words(name: str) -> str:
        missed = len(epochs[name]) - len(arrived[name])
        said = f"{shown(arrived[name], 1)} epochs" if arrived[name] else ""
        missing = f"{missed} of {len(epochs[name])} not in {size.epochs} epochs" if missed else ""
        return ", ".join(filter(None, [said, missing]))

    means = {name: spread(values)["mean"] for name, values in arrived.items() if values}
    times = f"; tanh takes {means['tanh'] / means['relu']:.1f} times as many" if len(means) == 2 else ""
    return f"ReLU {words('relu')}, tanh {words('tanh')}{times}"


def _draw(outcomes: Outcomes, target: float, images: Images, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=110, layout="constrained")
    figure.suptitle(f"four layers on {len(images.train.labels):,} images of {images.name}, a line a seed")
    panels = figure.subplots(1, len(outcomes), sharey=True)
    for axes, (conditions, of) in zip(panels, outcomes.items(), strict=True):
        for name, outcome in of.items():
            for number, run in enumerate(outcome.runs):
                label = f"{name}, learning rate {outcome.rate:g}" if number == 0 else None
                axes.plot(*zip(*run, strict=True), color=COLOURS[name], alpha=0.8, label=label)
        axes.axhline(target, color="grey", linestyle="--", linewidth=1)
        axes.set(title=conditions, xlabel="epochs", xlim=(0, None))
        axes.legend()
        axes.grid(alpha=0.3)
        from_zero(axes)
    panels[0].set_ylabel("training error")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")
