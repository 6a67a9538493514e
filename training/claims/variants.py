"""AlexNet with and without one of its ideas: dropout, overlapping pooling, normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alexnet_triton.common import files
from alexnet_triton.training.claims.common import Advance, Figures, Images, picture_path, shown, train
from alexnet_triton.training.evaluate import accuracy, predict
from alexnet_triton.training.loading import center_crop, random_crop
from alexnet_triton.training.log import from_zero
from alexnet_triton.training.model import AlexNet, NetworkConfig, initialize
from alexnet_triton.training.recipe import Recipe


@dataclass(frozen=True)
class Size:
    """How much of it is run: a network of a quarter of the width, at 227 pixels."""

    images: int
    epochs: int
    seeds: int = 3
    width: float = 0.25
    augment: bool = True  # random crops and reflections


# Without augmentation, which regularises as well: a network that knows its few images by heart after ten epochs.
DROPOUT = Size(images=600, epochs=40, augment=False)
IDEAS = Size(images=2_400, epochs=5)


@dataclass(frozen=True)
class Outcome:
    """One training: errors on its training and on the test images."""

    train_error: float
    test_error: float
    curve: tuple[tuple[float, float], ...]  # epochs and training error


def show_dropout(images: Images, size: Size, folder: Path, advance: Advance) -> Figures:
    """Dropout against none on few images: does it keep the test error nearer to the training error?"""
    part = images.part(size.images)
    outcomes = {
        name: _train_all(name, part, size, advance, dropout=dropout)
        for name, dropout in (("dropout 0.5", 0.5), ("none", 0.0))
    }
    _draw(outcomes, f"{len(part.train.labels):,} images of {part.name}", picture_path(folder, "dropout"))
    described = {
        name: f"training error {shown(_of(runs, 'train_error'))}, test error {shown(_of(runs, 'test_error'))}"
        for name, runs in outcomes.items()
    }
    gains = _differences(outcomes["none"], outcomes["dropout 0.5"])
    line = (
        f"{_where(part, size)}: "
        + "; ".join(f"{name}: {text}" for name, text in described.items())
        + f"; dropout lowers the test error by {shown([100 * gain for gain in gains], 1)} points"
    )
    return Figures("Dropout against none", line, "dropout.png", _values(outcomes, part, size))


def show_ideas(images: Images, size: Size, folder: Path, advance: Advance) -> Figures:
    """Overlapping against plain pooling and normalisation against none, all else alike."""
    part = images.part(size.images)
    outcomes = {
        "the 2012 network": _train_all("the 2012 network", part, size, advance),
        "plain pooling": _train_all("plain pooling", part, size, advance, overlap=False),
        "no normalisation": _train_all("no normalisation", part, size, advance, normalization=False),
    }
    _draw(outcomes, f"{len(part.train.labels):,} images of {part.name}", picture_path(folder, "ideas"))
    whole = outcomes["the 2012 network"]
    parts = [f"test error {shown(_of(whole, 'test_error'))}"]
    for idea, without in (("overlapping", "plain pooling"), ("normalisation", "no normalisation")):
        gains = [100 * gain for gain in _differences(outcomes[without], whole)]
        parts.append(f"{idea} lowers it by {shown(gains, 1)} points")
    return Figures(
        "Overlap and normalisation",
        f"{_where(part, size)}: {'; '.join(parts)}",
        "ideas.png",
        _values(outcomes, part, size),
    )


def _where(images: Images, size: Size) -> str:
    views = "" if size.augment else " without augmentation"
    return f"width {size.width:g}, {len(images.train.labels):,} images of {images.name}{views}, {size.epochs} epochs"


def _train_all(name: str, images: Images, size: Size, advance: Advance, **options: object) -> list[Outcome]:
    outcomes = []
    for seed in range(size.seeds):
        advance(f"{name}: seed {seed}")
        outcomes.append(_train_one(images, size, seed, options))
    return outcomes


def _train_one(images: Images, size: Size, seed: int, options: dict[str, object]) -> Outcome:
    config = NetworkConfig("alexnet", images.classes, width=size.width, **{"dropout": 0.0, **options})  # type: ignore[arg-type]
    torch.manual_seed(seed)
    network = AlexNet(config)
    initialize(network, "he")
    recipe = Recipe("claim", 32, 4e-4, optimizer="adamw", momentum=0.9, weight_decay=0.0, seed=seed)
    center = center_crop(config.input_size)
    cut = random_crop(config.input_size, seed) if size.augment else center
    curve = tuple((epoch, error) for epoch, _, error in train(network, images, cut, recipe, size.epochs))
    normalize = images.normalize()
    errors = [1 - accuracy(*predict(network, normalize, split, center)).top1 for split in (images.train, images.test)]
    return Outcome(errors[0], errors[1], curve)


def _of(outcomes: Sequence[Outcome], field: str) -> list[float]:
    return [getattr(outcome, field) for outcome in outcomes]


def _differences(without: Sequence[Outcome], with_it: Sequence[Outcome]) -> list[float]:
    """By how much an idea lowers the test error, seed by seed."""
    return [a.test_error - b.test_error for a, b in zip(without, with_it, strict=True)]


def _values(outcomes: dict[str, list[Outcome]], images: Images, size: Size) -> dict[str, object]:
    errors = {
        name: {field: _of(runs, field) for field in ("train_error", "test_error")} for name, runs in outcomes.items()
    }
    return {
        "data": images.name,
        "training_images": len(images.train.labels),
        "test_images": len(images.test.labels),
        "epochs": size.epochs,
        "width": size.width,
        "augment": size.augment,
        "errors": errors,
    }


def _draw(outcomes: dict[str, list[Outcome]], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=110, layout="constrained")
    figure.suptitle(title)
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
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")
