"""Which settings of a recipe are best on images held out of training: `python docs/choose_recipe.py --recipe demo`.

Each of seven settings trains the 2012 network for the recipe's length on the training images without the held-out ones,
and is measured on those. The test images are not looked at, so that a figure measured on them stays fair.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from alexnet_triton.common import files, provenance
from alexnet_triton.common.command import Parser, finish, fraction, positive_float, positive_int
from alexnet_triton.training.data import Dataset, add_data_options, hold_out, open_dataset
from alexnet_triton.training.device import Group
from alexnet_triton.training.errors import DataError, InterruptedRunError
from alexnet_triton.training.log import progress_bar
from alexnet_triton.training.model import NetworkConfig
from alexnet_triton.training.recipe import RECIPES, Recipe
from alexnet_triton.training.run import RunConfig, TrainingRun

PROG = "choose_recipe"

Changes = dict[str, float | bool]  # fields of Recipe

# Every field that a grid varies has a value here, so that the grid stays the same when the recipe takes the winner's.
STARTS: dict[str, Changes] = {
    "demo": {"learning_rate": 2e-4, "batch": 32, "dropout": 0.0, "augment": False},
    "fast": {"learning_rate": 3e-4, "dropout": 0.1, "augment": True, "weight_decay": 0.05, "label_smoothing": 0.05},
}
GRIDS: dict[str, dict[str, Changes]] = {
    "demo": {
        "start": {},
        "learning rate 1e-4": {"learning_rate": 1e-4},
        "learning rate 4e-4": {"learning_rate": 4e-4},
        "batch 16": {"batch": 16, "learning_rate": 1.4e-4},
        "batch 64": {"batch": 64, "learning_rate": 2.8e-4},
        "dropout 0.5": {"dropout": 0.5},
        "augmentation": {"augment": True},
    },
    "fast": {
        "start": {},
        "learning rate 1.5e-4": {"learning_rate": 1.5e-4},
        "learning rate 6e-4": {"learning_rate": 6e-4},
        "no dropout": {"dropout": 0.0},
        "dropout 0.5": {"dropout": 0.5},
        "no label smoothing": {"label_smoothing": 0.0},
        "weight decay 0.005": {"weight_decay": 0.005},
    },
}


@dataclass(frozen=True)
class Outcome:
    """What one setting reached on the held-out images, a value a seed."""

    setting: str
    changes: Changes  # of the recipe
    top1: list[float]
    trained_images: list[int]

    @property
    def mean(self) -> float:
        return statistics.mean(self.top1)


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description="Compare seven settings of a recipe on images held out of training.")
    add_data_options(parser)
    parser.add_argument("--recipe", choices=GRIDS, default="demo")
    parser.add_argument("--budget", type=positive_float, metavar="SECONDS", help="of each run, not the recipe's length")
    parser.add_argument("--held-out", type=fraction, default=0.1, help="fraction of the training images (default 0.1)")
    parser.add_argument("--seeds", type=positive_int, default=1, help="runs of each setting (default 1)")
    parser.add_argument("--width", type=positive_float, default=1.0, help="times the published channels and units")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures; after each setting those so far")
    options = parser.parse_args(words)
    return finish(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    dataset = without_test_images(open_dataset(options.data, options.data_dir), options.held_out)
    outcomes: list[Outcome] = []
    with progress_bar() as progress:
        for setting in GRIDS[options.recipe]:
            try:
                outcomes.append(_train(setting, dataset, options, progress))
            except InterruptedRunError:
                done = f"{len(outcomes)} settings are in {options.json}" if options.json and outcomes else "start again"
                raise InterruptedRunError(f"stopped at {setting!r}; {done}") from None
            if options.json:
                files.write_json(options.json, _report(outcomes, dataset, options))
    print(_table(outcomes))


def without_test_images(dataset: Dataset, held_out: float) -> Dataset:
    """The training images without a fraction of each class, and these instead of the test images.

    Raises:
        DataError: no image would be held out.
    """
    train, held = hold_out(dataset.train, held_out)
    if held is None:
        raise DataError(f"{dataset.name}: no image is held out; give --held-out a fraction above 0, or more images")
    return replace(dataset, train=train, test=held)


def make_recipe(name: str, setting: str, budget_s: float | None, seed: int) -> Recipe:
    """A recipe with the values of one setting of its grid."""
    changes: dict[str, Any] = {**STARTS[name], **GRIDS[name][setting], "holdout": 0.0, "seed": seed}
    recipe = replace(RECIPES[name], **changes)
    return replace(recipe, budget_s=budget_s) if budget_s else recipe


def _train(setting: str, dataset: Dataset, options: argparse.Namespace, progress: Progress) -> Outcome:
    top1, trained_images = [], []
    for seed in range(options.seeds):
        progress.console.print(f"{setting}, seed {seed}")
        recipe = make_recipe(options.recipe, setting, options.budget, seed)
        network = NetworkConfig(classes=len(dataset.classes), dropout=recipe.dropout, width=options.width)
        with tempfile.TemporaryDirectory() as folder:
            run = TrainingRun(RunConfig(network, recipe, Path(folder, "run.pt")), dataset, Group(), progress)
            metrics = run.train().metrics
        top1.append(metrics["top1"])
        trained_images.append(metrics["trained_images"])
    return Outcome(setting, {**STARTS[options.recipe], **GRIDS[options.recipe][setting]}, top1, trained_images)


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """The setting of the highest mean top-1; of equal ones, the first of the grid."""
    return max(outcomes, key=lambda outcome: outcome.mean)


def _report(outcomes: Sequence[Outcome], dataset: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    recipe = make_recipe(options.recipe, "start", options.budget, 0)
    return {
        "recipe": options.recipe,
        "data": dataset.name,
        "budget_s": recipe.budget_s,
        "epochs": None if recipe.budget_s else recipe.epochs,
        "width": options.width,
        "train_images": len(dataset.train.labels),
        "held_out_images": len(dataset.test.labels),
        "settings": [asdict(outcome) for outcome in outcomes],
        "best": best(outcomes).setting,
        "complete": len(outcomes) == len(GRIDS[options.recipe]),
        **provenance.describe_run(("torch", "numpy", "pillow")),
    }


def _table(outcomes: Sequence[Outcome]) -> str:
    lines = [f"{'setting':<22}top-1 on held-out images (least to most)   images trained on"]
    for outcome in sorted(outcomes, key=lambda outcome: -outcome.mean):
        spread = f"{outcome.mean:.4f} ({min(outcome.top1):.4f} to {max(outcome.top1):.4f})"
        lines.append(f"{outcome.setting:<22}{spread:<43}{statistics.mean(outcome.trained_images):,.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
