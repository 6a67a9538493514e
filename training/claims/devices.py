"""Two devices against one: images a second and the loss of each step, with `torchrun`."""

import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alexnet_triton.training.claims import ClaimResult, Note, SmallDataset, verdict, with_spread
from alexnet_triton.training.data import write_pictures
from alexnet_triton.training.errors import TrainingError
from alexnet_triton.training.log import from_zero, two_charts

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
ONE, TWO, BOTH = "one process on one core", "two processes, a core each", "one process on two cores"
TRAIN_OPTIONS = ["--recipe", "fast", "--dropout", "0", "--holdout", "0", "--precision", "fp32", "--log-every", "1"]
# By name: the launcher, and the threads of a process.
SETUPS: dict[str, tuple[tuple[str, ...], int]] = {ONE: ((), 1), TWO: (TORCHRUN, 1), BOTH: ((), 2)}


Outcome = tuple[list[float], list[float]]  # images a second of each epoch but the first, and the loss of each step


@dataclass(frozen=True)
class DeviceConditions:
    """What is run, and what counts as shown."""

    images: int
    batch: int
    epochs: int
    rounds: int
    width: float  # a narrow network exchanges its gradients quickly
    shown_above_times: float  # two processes are as many times as fast in every epoch
    largest_loss_difference: float  # of a step


def show(data: SmallDataset, conditions: DeviceConditions, picture: Path, note: Note) -> ClaimResult:
    outcomes = _run_all(data.first(conditions.images), conditions, note)
    losses = {setup: np.array(of[0][1]) for setup, of in outcomes.items()}
    difference = float(np.abs(losses[TWO] - losses[ONE]).max())
    rates = {setup: [rate for epochs, _ in of for rate in epochs] for setup, of in outcomes.items()}
    times = float(np.mean(rates[TWO]) / np.mean(rates[ONE]))
    _draw(rates, losses, picture)
    line = (
        f"width {conditions.width:g}, {conditions.batch} images a step: {TWO} {with_spread(rates[TWO], 0)} images/s, "
        f"{ONE} {with_spread(rates[ONE], 0)}: {times:.2f} times; {BOTH} {with_spread(rates[BOTH], 0)}; "
        f"losses of {len(losses[ONE])} steps differ by {difference:.1e} at most"
    )
    values = {
        "data": data.name,
        "images_per_second": rates,
        "losses": {setup: values.tolist() for setup, values in losses.items()},
        "largest_difference": difference,
        "times": times,
    }
    ratios = [two / one for two, one in zip(rates[TWO], rates[ONE], strict=True)]
    verdicts = {
        "faster": verdict(ratios, conditions.shown_above_times),
        "the same losses": "shown" if difference <= conditions.largest_loss_difference else "not shown",
    }
    return ClaimResult("Two devices against one", verdicts, line, values)


def _run_all(data: SmallDataset, conditions: DeviceConditions, note: Note) -> dict[str, list[Outcome]]:
    """The outcome of each round by setup. The setups take turns."""
    outcomes: dict[str, list[Outcome]] = {setup: [] for setup in SETUPS}
    with tempfile.TemporaryDirectory() as temporary:
        _write(data, Path(temporary, "data"))
        for number in range(conditions.rounds):
            for setup in SETUPS:
                note(f"{setup}, round {number + 1}")
                outcomes[setup].append(_run(setup, conditions, Path(temporary)))
    return outcomes


def _write(data: SmallDataset, folder: Path) -> None:
    """The images as files. Some of each class go to test/ too: a run evaluates them, the claim does not."""
    classes = tuple(f"{label:04}" for label in range(data.classes))
    for name, images in (("train", data.train), ("test", data.first(data.classes * 10).train)):
        write_pictures(images, classes, len(images.labels), folder / name, "png")


def _run(setup: str, conditions: DeviceConditions, folder: Path) -> Outcome:
    launcher, threads = SETUPS[setup]
    files = ["--data", str(folder / "data"), "--output", str(folder / "run.pt")]
    sizes = f"--epochs {conditions.epochs} --batch {conditions.batch} --width {conditions.width}".split()
    command = [sys.executable, "-m", *launcher, "alexnet_triton", "train", *files, *sizes, *TRAIN_OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise TrainingError(f"{setup}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    rates = [float(row["images_per_second"]) for row in _rows(folder / "run.epochs.csv")[1:]]
    return rates, [float(row["loss"]) for row in _rows(folder / "run.steps.csv")]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def _draw(rates: dict[str, list[float]], losses: dict[str, np.ndarray], path: Path) -> None:
    means = [float(np.mean(values)) for values in rates.values()]
    spreads = [[mean - min(values), max(values) - mean] for mean, values in zip(means, rates.values(), strict=True)]
    with two_charts(path) as (bars, curves):
        bars.barh(list(rates), means, xerr=np.transpose(spreads), color=["C0", "C1", "C2"])
        bars.set(xlabel="images a second", xlim=(0, None))
        for style, setup in (("-", ONE), ("--", TWO)):
            curves.plot(range(1, len(losses[setup]) + 1), losses[setup], style, label=setup)
        curves.set(xlabel="step", ylabel="loss")
        from_zero(curves)
