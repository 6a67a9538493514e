"""ReLU against tanh: the paper's figure 1, epochs of a four-layer network to a training error."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from training import files
from training.claims.common import Advance, Figures, Images, picture_path, shown, spread, train, whole_image
from training.curves import from_zero
from training.model import ACTIVATIONS, GAINS
from training.recipe import Recipe

LEARNING_RATES = (0.003, 0.01, 0.03)
CHOOSING_EPOCHS = 3
POOLED_GAIN = 0.5  # the largest of nine is about twice as far from zero as one, which would add up over the layers
LAST_DEVIATION = 0.01
COLOURS = {"relu": "tab:blue", "tanh": "tab:orange"}


@dataclass(frozen=True)
class Size:
    """How much of it is run."""

    images: int = 10_000
    epochs: int = 20  # at most
    seeds: int = 3


class FourLayers(nn.Sequential):
    """Three convolutions and a fully-connected layer: float [N, 3, 32, 32] to [N, classes]; no regularisation."""

    def __init__(self, activation: str, classes: int):
        make = ACTIVATIONS[activation]
        super().__init__(
            *(nn.Conv2d(3, 32, 5, padding=2), make(), nn.MaxPool2d(3, 2, padding=1)),  # 16 x 16
            *(nn.Conv2d(32, 32, 5, padding=2), make(), nn.MaxPool2d(3, 2, padding=1)),  # 8 x 8
            *(nn.Conv2d(32, 64, 5, padding=2), make(), nn.MaxPool2d(3, 2, padding=1)),  # 4 x 4
            *(nn.Flatten(), nn.Linear(64 * 4 * 4, classes)),
        )
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                fitting = POOLED_GAIN * GAINS[activation] / layer.weight[0].numel() ** 0.5
                nn.init.normal_(layer.weight, std=LAST_DEVIATION if isinstance(layer, nn.Linear) else fitting)
                nn.init.constant_(cast(Tensor, layer.bias), 0.0)


def threshold(images: Images) -> float:
    """25 % as in the paper, on CIFAR-10; 15 % on Fashion-MNIST, where 25 % is passed within the first epoch."""
    return 0.15 if images.name == "fashion-mnist" else 0.25


def show(images: Images, size: Size, folder: Path, advance: Advance) -> Figures:
    part, target = images.part(size.images), threshold(images)
    runs: dict[str, list[list[tuple[float, float]]]] = {}
    rates: dict[str, float] = {}
    for activation in ACTIVATIONS:
        advance(f"{activation}: learning rate")
        rates[activation] = _choose_learning_rate(activation, part)
        runs[activation] = []
        for seed in range(size.seeds):
            advance(f"{activation}: seed {seed}")
            runs[activation].append(_errors(activation, part, rates[activation], seed, size.epochs, target))
    epochs = {name: [_epochs_to(target, run) for run in of] for name, of in runs.items()}
    _draw(runs, target, part, picture_path(folder, "activation"))
    return Figures(
        "ReLU against tanh",
        _line(epochs, target, part, size),
        "activation.png",
        {
            "data": part.name,
            "training_images": len(part.train.labels),
            "threshold": target,
            "learning_rates": rates,
            "epochs": epochs,
            "at_most": size.epochs,
        },
    )


def _errors(
    activation: str, images: Images, rate: float, seed: int, epochs: int, target: float
) -> list[tuple[float, float]]:
    """Epochs and training error five times an epoch, until the target is passed."""
    torch.manual_seed(seed)
    network = FourLayers(activation, images.classes)
    recipe = Recipe("figure 1", 128, rate, weight_decay=0.0, schedule="plateau", augment=False, seed=seed)
    seen = []
    for epoch, _, error in train(network, images, whole_image, recipe, epochs, windows=5):
        seen.append((epoch, error))
        if error <= target:
            break
    return seen


def _choose_learning_rate(activation: str, images: Images) -> float:
    """The one with the least training error after a few epochs, chosen for each network as in the paper."""
    errors = {rate: _errors(activation, images, rate, 99, CHOOSING_EPOCHS, 0.0)[-1][1] for rate in LEARNING_RATES}
    return min(errors, key=errors.__getitem__)


def _epochs_to(target: float, run: list[tuple[float, float]]) -> float | None:
    return next((epoch for epoch, error in run if error <= target), None)


def _line(epochs: dict[str, list[float | None]], target: float, images: Images, size: Size) -> str:
    arrived = {name: [value for value in of if value is not None] for name, of in epochs.items()}

    def words(name: str) -> str:
        missed = len(epochs[name]) - len(arrived[name])
        said = f"{shown(arrived[name], 1)} epochs" if arrived[name] else ""
        missing = f"{missed} of {size.seeds} not in {size.epochs} epochs" if missed else ""
        return ", ".join(filter(None, [said, missing]))

    means = {name: spread(values)["mean"] for name, values in arrived.items() if values}
    times = f"; tanh takes {means['tanh'] / means['relu']:.1f} times as many" if len(means) == 2 else ""
    return (
        f"to {target:.0%} training error on {len(images.train.labels):,} images of {images.name}: "
        f"ReLU {words('relu')}, tanh {words('tanh')}{times}"
    )


def _draw(runs: dict[str, list[list[tuple[float, float]]]], target: float, images: Images, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, of in runs.items():
        for number, run in enumerate(of):
            label = name if number == 0 else None
            axes.plot(*zip(*run, strict=True), color=COLOURS[name], alpha=0.8, label=label)
    axes.axhline(target, color="grey", linestyle="--", linewidth=1)
    axes.set_title(f"four layers on {images.name}, a line a seed")
    axes.set(xlabel="epochs", ylabel="training error")
    from_zero(axes)
    axes.set_xlim(left=0)
    axes.legend()
    axes.grid(alpha=0.3)
    files.replace(path, lambda temporary: figure.savefig(temporary, format="png"))
