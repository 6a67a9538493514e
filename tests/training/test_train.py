"""Training learns, and its commands fail in one line."""

from pathlib import Path

import numpy as np
import pytest

from main_job import MainJob
from training import pictures, train
from training.checkpoint import Checkpoint
from training.evaluate import accuracy
from training.recipe import RECIPES


def test_a_short_training_learns(trained: Checkpoint) -> None:
    assert trained.metrics["images"] == 10_000
    assert trained.metrics["top1"] > 0.4  # ten classes: 0.1 by chance
    assert trained.metrics["top5"] > trained.metrics["top1"]


def test_the_main_job_prints_accuracy_on_the_whole_test_set(main_job: MainJob, trained: Checkpoint) -> None:
    assert f"top-1 {trained.metrics['top1']:.4f}" in main_job.output
    assert "on 10,000 test images" in main_job.output


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    recipe = RECIPES["demo"]
    rates = [recipe.learning_rate_at(progress) for progress in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(recipe.learning_rate, rel=0.01)
    assert rates[0] < rates[2] < rates[5]
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_accuracy_counts_the_first_and_the_first_five() -> None:
    scores = np.tile(np.arange(10.0), (3, 1))  # the best is 9, the fifth 5
    measured = accuracy(scores, np.array([9, 5, 4]))
    assert (measured.top1, measured.top5, measured.images) == (1 / 3, 2 / 3, 3)


def test_bad_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--data", str(tmp_path)]) == 1
    assert pictures.main(["--data", str(tmp_path), "--to", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert error.startswith("training: ")


def test_a_folder_that_cannot_be_written_is_one_line(
    fashion_mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for target, reason in (("file", "is there already"), ("file/inside", "cannot be written")):
        arguments = ["--data-dir", str(fashion_mnist_folder), "--to", str(tmp_path / target), "--count", "1"]
        assert pictures.main(arguments) == 1
        assert reason in capsys.readouterr().err
