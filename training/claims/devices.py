"""Two devices against one: images a second and the loss of each step, as `torchrun` makes them."""

import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_triton.common import files
from alexnet_triton.training.claims.common import Advance, Figures, Images, picture_path, shown
from alexnet_triton.training.errors import TrainingError
from alexnet_triton.training.log import from_zero

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "alexnet_triton.training.train")
ONE, TWO, BOTH = "one process on one core", "two processes, a core each", "one process on two cores"
VARIANTS = {
    ONE: (("alexnet_triton.training.train",), 1),
    TWO: (TORCHRUN, 1),
    BOTH: (("alexnet_triton.training.train",), 2),
}  # and threads a process


@dataclass(frozen=True)
class Size:
    """How much of it is run, on a network of a quarter of the width, whose gradients are soon exchanged."""

    images: int = 640
    epochs: int = 3
    rounds: int = 2
    batch: int = 64
    width: float = 0.25


@dataclass(frozen=True)
class Outcome:
    """Images a second of each epoch but the first, and the loss of each step."""

    rates: list[float]
    losses: list[float]


def show(images: Images, size: Size, folder: Path, advance: Advance) -> Figures:
    part = images.part(size.images)
    outcomes: dict[str, list[Outcome]] = {way: [] for way in VARIANTS}
    with tempfile.TemporaryDirectory() as temporary:
        _write(part, Path(temporary, "data"))
        for number in range(size.rounds):
            for way in VARIANTS:
                advance(f"{way}, round {number + 1}")
                outcomes[way].append(_run(way, size, Path(temporary)))
    losses = {way: np.array(of[0].losses) for way, of in outcomes.items()}
    difference = float(np.abs(losses[TWO] - losses[ONE]).max())
    rates = {way: [rate for outcome in of for rate in outcome.rates] for way, of in outcomes.items()}
    times = np.mean(rates[TWO]) / np.mean(rates[ONE])
    _draw(rates, losses, picture_path(folder, "devices"))
    line = (
        f"width {size.width:g}, {size.batch} images a step: {TWO} {shown(rates[TWO], 0)} images/s, "
        f"{ONE} {shown(rates[ONE], 0)}: {times:.2f} times; {BOTH} {shown(rates[BOTH], 0)}; "
        f"losses of {len(losses[ONE])} steps differ by {difference:.1e} at most"
    )
    values = {
        "data": part.name,
        "images_per_second": rates,
        "losses": {way: values.tolist() for way, values in losses.items()},
        "largest_difference": difference,
        "times": float(times),
    }
    return Figures("Two devices against one", line, "devices.png", values)


def _write(images: Images, folder: Path) -> None:
    """The images as files, each class also in test/, which is evaluated but not part of the claim."""
    for index, label in enumerate(images.train.labels):
        for split in ("train", "test") if index < images.classes * 10 else ("train",):
            path = folder / split / f"{label:04}" / f"{index:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.train.images[index]).save(path)


def _run(way: str, size: Size, folder: Path) -> Outcome:
    module, threads = VARIANTS[way]
    options = {
        "--data": folder / "data",
        "--output": folder / "run.pt",
        "--recipe": "fast",
        "--epochs": size.epochs,
        "--batch": size.batch,
        "--width": size.width,
        "--dropout": 0,
        "--holdout": 0,
        "--precision": "fp32",
        "--log-every": 1,
    }
    command = [sys.executable, "-m", *module, *(str(word) for option in options.items() for word in option)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise TrainingError(f"claims, {way}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return Outcome(
        [float(row["images_per_second"]) for row in _rows(folder / "run.epochs.csv")[1:]],
        [float(row["loss"]) for row in _rows(folder / "run.steps.csv")],
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def _draw(rates: dict[str, list[float]], losses: dict[str, np.ndarray], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    bars, curves = figure.subplots(1, 2)
    means = [float(np.mean(values)) for values in rates.values()]
    spreads = [[mean - min(values), max(values) - mean] for mean, values in zip(means, rates.values(), strict=True)]
    bars.barh(list(rates), means, xerr=np.transpose(spreads), color=["C0", "C1", "C2"])
    bars.set(xlabel="images a second", xlim=(0, None))
    for style, way in (("-", ONE), ("--", TWO)):
        curves.plot(range(1, len(losses[way]) + 1), losses[way], style, label=way)
    curves.set(xlabel="step", ylabel="loss")
    from_zero(curves)
    curves.legend()
    curves.grid(alpha=0.3)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png")
