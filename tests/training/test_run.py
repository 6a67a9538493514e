"""Whole runs as a user starts them: stopped and resumed, in one process and in two."""

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from torch.distributed import TCPStore

from alexnet_triton.training import checkpoint, train
from alexnet_triton.training.errors import CheckpointError
from main_job import ROOT

# A narrow network on few images: what is tested here doesn't depend on either.
TINY = ["--recipe", "fast", "--batch", "16", "--width", "0.05", "--holdout", "0.1", "--log-every", "1"]
EPOCHS, STEPS_AN_EPOCH = 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, one a little brighter than the other: 72 images to train, 20 to test."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("noise")
    for split, count in (("train", 36), ("test", 10)):
        for label, name in enumerate(("dark", "bright")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(60 * label, 200 + 55 * label, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def arguments(folder: Path, output: Path, *more: str, epochs: int = EPOCHS) -> list[str]:
    return ["--data", str(folder), "--output", str(output), "--epochs", str(epochs), *TINY, *more]


def start(*command: str, threads: int, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **variables}
    whole = [sys.executable, "-m", *command]
    return subprocess.Popen(whole, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@contextmanager
def members(count: int) -> Iterator[list[dict[str, str]]]:
    """What torchrun sets for each of `count` processes, which meet at this one. Torchrun itself takes seconds."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    run = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    run |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    yield [{**run, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def never_stopped(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run.pt"
    assert train.main(arguments(folder, output, "--dropout", "0.5")) == 0
    return output


def test_a_run_writes_its_checkpoint_figures_and_curves(never_stopped: Path) -> None:
    names = sorted(path.name for path in never_stopped.parent.iterdir())
    assert names == ["run.curves.png", "run.epochs.csv", "run.json", "run.pt", "run.steps.csv", "run.tensorboard"]
    described = json.loads(never_stopped.with_suffix(".json").read_text())
    assert described["split"] == {"train": 64, "held_out": 8, "test": 20}
    assert described["recipe"]["dropout"] == 0.5
    assert described["metrics"]["trained_images"] == EPOCHS * 64
    with Image.open(never_stopped.with_name("run.curves.png")) as picture:
        assert picture.width > 800
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_a_row_an_epoch_and_a_row_a_step(never_stopped: Path) -> None:
    epochs = rows(never_stopped.with_name("run.epochs.csv"))
    assert [int(row["images"]) for row in epochs] == [64 * (number + 1) for number in range(EPOCHS)]
    assert all(0 <= float(row["held_top1"]) <= 1 for row in epochs)
    steps = rows(never_stopped.with_name("run.steps.csv"))
    assert len(steps) == EPOCHS * STEPS_AN_EPOCH
    assert float(steps[-1]["learning_rate"]) < float(steps[5]["learning_rate"])
    mean = np.mean([float(row["loss"]) for row in steps[:STEPS_AN_EPOCH]])
    assert float(epochs[0]["loss"]) == pytest.approx(mean, rel=1e-4)


def test_tensorboard_reads_the_scalars(never_stopped: Path) -> None:
    (written,) = (never_stopped.parent / "run.tensorboard").iterdir()
    content, tags = written.read_bytes(), set()
    while content:  # records: length uint64, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        tags |= {value.tag for value in event.summary.value}
        content = content[16 + length :]
    assert {"train/loss", "train/learning_rate", "held/top1"} <= tags


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_a_stopped_run_ends_in_the_same_bits(
    folder: Path, never_stopped: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "run.pt"
    command = arguments(folder, output, "--dropout", "0.5")
    process = start("alexnet_triton", "train", *command, threads=torch.get_num_threads())
    epochs = tmp_path / "run.epochs.csv"
    while not (epochs.exists() and (tmp_path / "run.state.pt").exists()):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(number)
    errors = process.communicate(timeout=120)[1]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert errors.splitlines()[-1].startswith("alexnet-triton train: stopped after step")
        assert "Traceback" not in errors
    assert not output.exists(), "it was over before it could be stopped"
    assert train.main([*command, "--resume"]) == 0
    ours, theirs = (checkpoint.load(path).weights for path in (output, never_stopped))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    without_times = [(row["step"], row["loss"]) for row in rows(output.with_name("run.steps.csv"))]
    assert without_times == [(row["step"], row["loss"]) for row in rows(never_stopped.with_name("run.steps.csv"))]


def test_what_cannot_be_resumed_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run.pt"
    assert train.main([*arguments(folder, output), "--resume"]) == 1
    assert "no unfinished run to resume" in capsys.readouterr().err
    (tmp_path / "run.state.pt").write_bytes(b"PK\x03\x04 half a state")
    assert train.main([*arguments(folder, output), "--resume"]) == 1
    error = capsys.readouterr().err
    assert "run.state.pt: damaged" in error
    assert error.count("\n") == 1


def test_another_recipe_is_not_resumed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run.pt"
    identity = {"recipe": {"name": "paper"}}
    torch.save({"identity": identity}, tmp_path / "run.state.pt")
    assert train.main([*arguments(folder, output), "--resume"]) == 1
    assert "give the same, or start without --resume" in capsys.readouterr().err


def test_two_processes_make_the_steps_of_one(folder: Path, tmp_path: Path) -> None:
    options = ["--dropout", "0", "--precision", "fp32"]
    assert train.main(arguments(folder, tmp_path / "one.pt", *options, epochs=5)) == 0
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "alexnet_triton", "train"]
    process = start(*torchrun, *arguments(folder, tmp_path / "two.pt", *options, epochs=5), threads=1)
    errors = process.communicate(timeout=250)[1]
    assert process.returncode == 0, errors
    one, two = (rows(tmp_path / f"{name}.steps.csv") for name in ("one", "two"))
    assert len(one) == len(two) == 20
    assert [row["images"] for row in one] == [row["images"] for row in two]
    losses = np.array([[float(row["loss"]) for row in run] for run in (one, two)])
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-4)
    assert losses[0].std() > 1e-2
    metrics = [json.loads((tmp_path / f"{name}.json").read_text())["metrics"] for name in ("one", "two")]
    assert [values["processes"] for values in metrics] == [1, 2]
    assert [values["images"] for values in metrics] == [20, 20]
    assert metrics[0]["top1"] == metrics[1]["top1"]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """A limit on the size of files, in place of a full disk: the system refuses the same write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_nothing_half_written(
    folder: Path, tmp_path: Path, full_disk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(folder, tmp_path / "run.pt")) == 1
    assert re.search(
        r"^alexnet-triton train: .*run\.state\.pt: cannot be written \(file too large\); free space",
        capsys.readouterr().err,
        re.M,
    )
    assert not list(tmp_path.glob("*.pt"))
    assert not list(tmp_path.glob(".*"))


def test_too_little_space_is_reported_before_training(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"MiB free, .* MiB needed for checkpoints; free space"):
        checkpoint.require_space(tmp_path / "not yet there", needed=10**18)
