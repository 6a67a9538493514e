"""AlexNet with and without one of its ideas: dropout, overlapping pooling, response normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from alexnet_triton.training.claims.common import ClaimResult, Note, SmallDataset, train, with_spread
from alexnet_triton.training.evaluate import predict
from alexnet_triton.training.loading import center_crop, random_crop
from alexnet_triton.training.log import from_zero, new_figure, save_figure
from alexnet_triton.training.model import AlexNet, NetworkConfig, initialize
from alexnet_triton.training.recipe import Recipe
from alexnet_triton.training.scores import topk_hits


@dataclass(frozen=True)
class VariantConfig:
    """How much is run: a network of a quarter of the width, at 227 pixels."""

    images: int
    epochs: int
    seeds: int = 3
    width: float = 0.25
    augment: bool = True  # random crops and reflections


# Without augmentation, which regularises too: without dropout, the network fits its few images after ten epochs.
DROPOUT = VariantConfig(images=600, epochs=40, augment=False)
IDEAS = VariantConfig(images=2_400, epochs=5)


@dataclass(frozen=True)
class VariantOutcome:
    """One training: its errors on the training and on the test images."""

    train_error: float
    test_error: float
    curve: tuple[tuple[float, float], ...]  # epochs and training error


def show_dropout(data: SmallDataset, config: VariantConfig, folder: Path, note: Note) -> ClaimResult:
    """Dropout against none on few images: how much nearer is the test error to the training error?"""
    data, network = data.first(config.images), NetworkConfig(dropout=0.0)
    outcomes = {
        name: _train_all(name, replace(network, dropout=dropout), data, config, note)
        for name, dropout in (("dropout 0.5", 0.5), ("none", 0.0))
    }
    described = [
        f"{name}: training error {with_spread(_of(runs, 'train_error'))}, "
        f"test error {with_spread(_of(runs, 'test_error'))}"
        for name, runs in outcomes.items()
    ]
    gain = _gain(outcomes["none"], outcomes["dropout 0.5"])
    line = f"{'; '.join(described)}; dropout lowers the test error by {gain} points"
    return _result("Dropout against none", line, folder / "dropout.png", outcomes, data, config)


def show_ideas(data: SmallDataset, config: VariantConfig, folder: Path, note: Note) -> ClaimResult:
    """Overlapping against plain pooling, and response normalisation against none."""
    data, network = data.first(config.images), NetworkConfig(dropout=0.0)
    networks = {
        "the 2012 network": network,
        "plain pooling": replace(network, overlap=False),
        "no normalisation": replace(network, lrn=False),
    }
    outcomes = {name: _train_all(name, network, data, config, note) for name, network in networks.items()}
    whole = outcomes["the 2012 network"]
    described = [f"test error {with_spread(_of(whole, 'test_error'))}"]
    for idea, without in (("overlapping", "plain pooling"), ("normalisation", "no normalisation")):
        described.append(f"{idea} lowers it by {_gain(outcomes[without], whole)} points")
    line = "; ".join(described)
    return _result("Overlap and normalisation", line, folder / "ideas.png", outcomes, data, config)


def _train_all(
    name: str, network: NetworkConfig, data: SmallDataset, config: VariantConfig, note: Note
) -> list[VariantOutcome]:
    network = replace(network, classes=data.classes, width=config.width)
    outcomes = []
    for seed in range(config.seeds):
        note(f"{name}: seed {seed}")
        outcomes.append(_train_one(network, data, config, seed))
    return outcomes


def _train_one(network_config: NetworkConfig, data: SmallDataset, config: VariantConfig, seed: int) -> VariantOutcome:
    torch.manual_seed(seed)
    network = AlexNet(network_config)
    initialize(network, "he")
    recipe = Recipe("claim", 32, 4e-4, optimizer="adamw", momentum=0.9, weight_decay=0.0, seed=seed)
    center = center_crop(network_config.input_size)
    crop = random_crop(network_config.input_size, seed) if config.augment else center
    curve = tuple(train(network, data, crop, recipe, config.epochs))
    normalize = data.normalize()
    train_error, test_error = (
        1 - topk_hits(*predict(network, normalize, split, center), 1) for split in (data.train, data.test)
    )
    return VariantOutcome(train_error, test_error, curve)


def _of(outcomes: Sequence[VariantOutcome], field: str) -> list[float]:
    return [getattr(outcome, field) for outcome in outcomes]


def _gain(without: Sequence[VariantOutcome], with_it: Sequence[VariantOutcome]) -> str:
    """By how many points an idea lowers the test error, compared seed by seed."""
    return with_spread([100 * (a.test_error - b.test_error) for a, b in zip(without, with_it, strict=True)], 1)


def _result(
    claim: str,
    line: str,
    picture: Path,
    outcomes: dict[str, list[VariantOutcome]],
    data: SmallDataset,
    config: VariantConfig,
) -> ClaimResult:
    images = f"{len(data.train.labels):,} images of {data.name}"
    _draw(outcomes, images, picture)
    views = "" if config.augment else " without augmentation"
    values = {
        "data": data.name,
        "training_images": len(data.train.labels),
        "test_images": len(data.test.labels),
        "epochs": config.epochs,
        "width": config.width,
        "augment": config.augment,
        "errors": {
            name: {field: _of(runs, field) for field in ("train_error", "test_error")}
            for name, runs in outcomes.items()
        },
    }
    line = f"width {config.width:g}, {images}{views}, {config.epochs} epochs: {line}"
    return ClaimResult(claim, line, picture.name, values)


def _draw(outcomes: dict[str, list[VariantOutcome]], title: str, path: Path) -> None:
    figure = new_figure(9, 3.8, title)
    curves, ends = figure.subplots(1, 2)
    for place, (name, runs) in enumerate(outcomes.items()):
        colour = f"C{place}"
        for number, outcome in enumerate(runs):
            label = name if number == 0 else None
            curves.plot(*zip(*outcome.curve, strict=True), color=colour, alpha=0.8, label=label)
        for offset, field, marker in ((-0.08, "train_error", "o"), (0.08, "test_error", "s")):
            label = field.replace("_", " ") if place == 0 else None
            ends.plot([place + offset] * len(runs), _of(runs, field), marker, color=colour, label=label)
    curves.set(xlabel="epochs", ylabel="training error, as the images passed")
    curves.legend()
    ends.set(ylabel="error at the end, central crop", xlim=(-0.5, len(outcomes) - 0.5))
    ends.set_xticks(range(len(outcomes)), list(outcomes))
    ends.legend()
    for axes in (curves, ends):
        axes.grid(alpha=0.3)
        from_zero(axes)
    save_figure(figure, path)
