"""Whether a few photographs are learned better from a trained network than from nothing.

    python docs/finetune.py --images cifar10 --json finetune.json

The folder has train/<class>/ and test/<class>/. A base network is trained on the first half of the classes; then, for
each seed, --count images of each other class are trained on for the same time with and without it. Accuracy is that
on all test images of those classes.
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.common import files, provenance
from alexnet_triton.common.command import Parser, finish, positive_float, positive_int
from alexnet_triton.training import checkpoint, train
from alexnet_triton.training.data import FileSplit, open_folder
from alexnet_triton.training.errors import DataError, TrainingError

PROG = "finetune"
WITH, WITHOUT = "with --init", "without"


def main(words: Sequence[str] | None = None) -> int:
    parser = Parser(prog=PROG, description="Compare fine-tuning with training from nothing, on few photographs.")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="train/<class>/, test/<class>/")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/finetune"), help="for data and checkpoints")
    parser.add_argument("--base", type=Path, metavar="CHECKPOINT", help="of the first half of the classes, if trained")
    parser.add_argument("--base-budget", type=positive_float, default=1800, metavar="SECONDS", help="default 1800")
    parser.add_argument("--budget", type=positive_float, default=180, metavar="SECONDS", help="a run (default 180)")
    parser.add_argument("--count", type=positive_int, default=100, help="training images of a class (default 100)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--recipe", default="fast", help="without --init, and of the base (default fast)")
    parser.add_argument("--width", type=positive_float, default=1.0, help="times the published channels and units")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_args(words)
    return finish(PROG, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    dataset = open_folder(options.images)
    half = len(dataset.classes) // 2
    known, others = dataset.classes[:half], dataset.classes[half:]
    if half < 2:
        raise DataError(f"{options.images}: {len(dataset.classes)} classes; at least 4 are needed")
    base = options.base or _train_base(options, known)
    assert isinstance(dataset.train, FileSplit)
    runs = [row for seed in options.seeds for row in _compare(options, dataset.train, others, base, seed)]
    print(_table(runs))
    if options.json:
        _write(options, known, others, base, runs)


def _train_base(options: argparse.Namespace, classes: Sequence[str]) -> Path:
    data, output = options.folder / "base", options.folder / "base.pt"
    shutil.rmtree(data, ignore_errors=True)
    for split in ("train", "test"):
        _link_classes(options.images / split, data / split, classes)
    _train(data, output, options.base_budget, "--recipe", options.recipe, "--width", options.width)
    return output


def _link_classes(source: Path, target: Path, classes: Sequence[str]) -> None:
    target.mkdir(parents=True)
    for name in classes:
        (target / name).symlink_to((source / name).absolute())


def _compare(
    options: argparse.Namespace, split: FileSplit, classes: Sequence[str], base: Path, seed: int
) -> list[dict[str, Any]]:
    """Two runs on the same images, as rows."""
    data = options.folder / f"few-{seed}"
    shutil.rmtree(data, ignore_errors=True)
    _link_classes(options.images / "test", data / "test", classes)
    _link_few(split, data / "train", classes, options.count, seed)
    ways = {WITH: ("--init", base), WITHOUT: ("--recipe", options.recipe, "--width", options.width)}
    rows = []
    for number, (way, words) in enumerate(ways.items()):
        output = options.folder / f"few-{seed}-{number}.pt"
        metrics = _train(data, output, options.budget, "--seed", seed, *words)
        rows.append({"way": way, "seed": seed, **metrics})
    return rows


def _link_few(split: FileSplit, target: Path, classes: Sequence[str], count: int, seed: int) -> None:
    """`count` images of each class, chosen by the seed."""
    rng = np.random.default_rng(seed)
    for name in classes:
        of_class = [path for path in split.paths if path.parent.name == name]
        (target / name).mkdir(parents=True)
        for index in rng.permutation(len(of_class))[:count]:
            (target / name / of_class[index].name).symlink_to(of_class[index].absolute())


def _train(data: Path, output: Path, budget_s: float, *words: object) -> dict[str, Any]:
    """Train as the command does; returns the metrics on the whole test split."""
    command = ["--data", data, "--output", output, "--budget", budget_s, *words]
    if train.main([str(word) for word in command]) != 0:
        raise TrainingError(f"{output}: not trained, see above; mend that and start again")
    return checkpoint.load(output).metrics


def _accuracies(runs: Sequence[dict[str, Any]], way: str) -> list[float]:
    return [run["top1"] for run in runs if run["way"] == way]


def _table(runs: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'seed':>6}{WITH:>14}{WITHOUT:>14}{'points':>9}"]
    pairs = [*zip(_accuracies(runs, WITH), _accuracies(runs, WITHOUT), strict=True)]
    seeds = [str(run["seed"]) for run in runs if run["way"] == WITH]
    means = tuple(statistics.mean(values) for values in zip(*pairs, strict=True))
    for seed, (fine, fresh) in zip([*seeds, "mean"], [*pairs, means], strict=True):
        lines.append(f"{seed:>6}{fine:>14.4f}{fresh:>14.4f}{100 * (fine - fresh):>+9.1f}")
    return "\n".join(lines)


def _write(
    options: argparse.Namespace, known: Sequence[str], others: Sequence[str], base: Path, runs: list[dict[str, Any]]
) -> None:
    trained = checkpoint.load(base)
    figures = {
        "base": {"classes": known, "recipe": trained.recipe, "metrics": trained.metrics},
        "classes": others,
        "images_a_class": options.count,
        "budget_s": options.budget,
        "runs": runs,
        **provenance.describe_run(("torch", "numpy", "pillow")),
    }
    files.write_json(options.json, figures)


if __name__ == "__main__":
    sys.exit(main())
