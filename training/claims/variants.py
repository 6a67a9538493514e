"""AlexNet with and without one of its ideas: dropout, overlapping pooling, response normalisation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

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
from alexnet_triton.training.evaluate import predict
from alexnet_triton.training.loading import center_crop, random_crop
from alexnet_triton.training.log import from_zero, topk_hits, two_charts
from alexnet_triton.training.model import AlexNet, NetworkConfig, initialize
from alexnet_triton.training.recipe import Recipe


@dataclass(frozen=True)
class VariantConditions:
    """What is run, and what counts as shown, of a network at 227 pixels."""

    images: int
    batch: int
    learning_rate: float
    epochs: int
    seeds: int
    width: float  # times the published channels and units
    augment: bool  # random crops and reflections, which regularise too
    shown_above_points: float  # by which the test error falls with every seed


ERRORS = ("train_error", "test_error")


@dataclass(frozen=True)
class VariantOutcome:
    """One training: its errors on the training and on the test images."""

    train_error: float
    test_error: float
    curve: Curve


Outcomes = dict[str, list[VariantOutcome]]  # by variant, one a seed


def show_dropout(data: SmallDataset, conditions: VariantConditions, picture: Path, note: Note) -> ClaimResult:
    """Dropout against none on few images: how much nearer is the test error to the training error?"""
    data = data.first(conditions.images)
    outcomes = _train_all({"dropout 0.5": {"dropout": 0.5}, "none": {}}, data, conditions, note)
    described = [
        f"{name}: training error {_spread(runs, 'train_error')}, test error {_spread(runs, 'test_error')}"
        for name, runs in outcomes.items()
    ]
    gains = {"dropout": _gains(outcomes["none"], outcomes["dropout 0.5"])}
    line = f"{'; '.join(described)}; {_describe(gains)}"
    claim = "Dropout against none" + (", with augmentation" if conditions.augment else "")
    return _result(claim, gains, line, outcomes, data, conditions, picture)


def show_ideas(data: SmallDataset, conditions: VariantConditions, picture: Path, note: Note) -> ClaimResult:
    """Overlapping against plain pooling, and response normalisation against none."""
    data = data.first(conditions.images)
    changes = {"the 2012 network": {}, "plain pooling": {"overlap": False}, "no normalisation": {"lrn": False}}
    outcomes = _train_all(changes, data, conditions, note)
    whole = outcomes["the 2012 network"]
    without = {"overlapping pooling": "plain pooling", "normalisation": "no normalisation"}
    gains = {idea: _gains(outcomes[other], whole) for idea, other in without.items()}
    line = f"test error {_spread(whole, 'test_error')}; {_describe(gains)}"
    return _result("Overlap and normalisation", gains, line, outcomes, data, conditions, picture)


def _train_all(
    changes: Mapping[str, Mapping[str, Any]], data: SmallDataset, config: VariantConditions, note: Note
) -> Outcomes:
    """Train each variant with each seed; `changes` are those of its NetworkConfig."""
    network = NetworkConfig(dropout=0.0, classes=data.classes, width=config.width)
    outcomes: Outcomes = {name: [] for name in changes}
    for name, changed in changes.items():
        for seed in range(config.seeds):
            note(f"{name}: seed {seed}")
            outcomes[name].append(_train_one(replace(network, **changed), data, config, seed))
    return outcomes


def _train_one(
    network_config: NetworkConfig, data: SmallDataset, config: VariantConditions, seed: int
) -> VariantOutcome:
    torch.manual_seed(seed)
    network = AlexNet(network_config)
    initialize(network, "he")
    recipe = Recipe("claim", config.batch, config.learning_rate, "adamw", weight_decay=0.0, seed=seed)
    recipe = replace(recipe, epochs=config.epochs)
    center = center_crop(network_config.input_size)
    crop = random_crop(network_config.input_size, seed) if config.augment else center
    normalize = data.normalize()
    curve = tuple(train(network, normalize, data, crop, recipe))
    answers = [predict(network, normalize, split, center) for split in (data.train, data.test)]
    train_error, test_error = (1 - topk_hits(*each, 1) for each in answers)
    return VariantOutcome(train_error, test_error, curve)


def _of(outcomes: Sequence[VariantOutcome], field: str) -> list[float]:
    return [getattr(outcome, field) for outcome in outcomes]


def _spread(outcomes: Sequence[VariantOutcome], field: str) -> str:
    return with_spread(_of(outcomes, field))


def _gains(without: Sequence[VariantOutcome], with_it: Sequence[VariantOutcome]) -> list[float]:
    """By how many points an idea lowers the test error, with each seed."""
    return [100 * (a.test_error - b.test_error) for a, b in zip(without, with_it, strict=True)]


def _describe(gains: Mapping[str, list[float]]) -> str:
    return "; ".join(f"{idea} lowers the test error by {with_spread(of, 1)} points" for idea, of in gains.items())


def _result(
    claim: str,
    gains: Mapping[str, list[float]],
    line: str,
    outcomes: Outcomes,
    data: SmallDataset,
    config: VariantConditions,
    picture: Path,
) -> ClaimResult:
    images = f"{len(data.train.labels):,} images of {data.name}"
    _draw(outcomes, images, picture)
    views = "" if config.augment else " without augmentation"
    values = {
        "data": data.name,
        "training_images": len(data.train.labels),
        "test_images": len(data.test.labels),
        "gains_points": dict(gains),
        "errors": {name: {field: _of(runs, field) for field in ERRORS} for name, runs in outcomes.items()},
    }
    line = f"width {config.width:g}, {images}{views}, {config.epochs} epochs: {line}"
    verdicts = {idea: verdict(of, config.shown_above_points) for idea, of in gains.items()}
    return ClaimResult(claim, verdicts, line, values)


def _draw(outcomes: Outcomes, title: str, path: Path) -> None:
    with two_charts(path, title) as (curves, ends):
        for place, (name, runs) in enumerate(outcomes.items()):
            draw_runs(curves, name, [outcome.curve for outcome in runs], f"C{place}")
            for offset, field, marker in zip((-0.08, 0.08), ERRORS, "os", strict=True):
                label = field.replace("_", " ") if place == 0 else None
                ends.plot([place + offset] * len(runs), _of(runs, field), marker, color=f"C{place}", label=label)
        curves.set(xlabel="epochs", ylabel="training error, as the images passed")
        ends.set(ylabel="error at the end, central crop", xlim=(-0.5, len(outcomes) - 0.5))
        ends.set_xticks(range(len(outcomes)), list(outcomes))
        from_zero(curves)
        from_zero(ends)
