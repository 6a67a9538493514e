"""Training learns, and its commands fail in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from alexnet_triton.training import data, train
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.log import History, draw_curves
from alexnet_triton.training.recipe import RECIPES, Schedule, make_optimizer
from main_job import MainJob


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


def test_learning_rate_follows_the_batch() -> None:
    paper, fast = RECIPES["paper"].with_batch(256), RECIPES["fast"].with_batch(256)
    assert (paper.batch, paper.learning_rate) == (256, pytest.approx(0.02))
    assert fast.learning_rate == pytest.approx(2 * RECIPES["fast"].learning_rate)


def test_the_plateau_divides_the_papers_learning_rate_by_ten() -> None:
    recipe = RECIPES["paper"]
    optimizer = make_optimizer(nn.Linear(2, 2), recipe)
    schedule = Schedule(optimizer, recipe)
    rates = []
    for top1 in (0.1, 0.2, *[0.2] * (recipe.patience + 1), 0.3):
        schedule.before_step(0.5)
        rates.append(schedule.learning_rate)
        schedule.after_epoch(top1)
    assert rates[0] == rates[-2] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.001)


def test_options_replace_settings_of_the_recipe() -> None:
    options = train.parse(
        ["--recipe", "paper", "--dropout", "0", "--batch", "64", "--activation", "tanh", "--no-overlap"]
    )
    config = train.make_config(options, classes=5, processes=2)
    assert (config.recipe.batch, config.recipe.learning_rate) == (64, pytest.approx(0.005))
    network = config.network
    assert (network.activation, network.dropout, network.overlap, network.lrn) == ("tanh", 0.0, False, True)
    assert (config.recipe.epochs, config.recipe.budget_s) == (90, None)
    assert train.make_recipe(train.parse(["--budget", "7"]), 1).budget_s == 7
    assert train.make_recipe(train.parse(["--epochs", "7"]), 1).budget_s is None


@pytest.mark.parametrize(
    "wrong",
    [
        ["--epochs", "0"],
        ["--budget", "-1"],
        ["--epochs", "1", "--budget", "1"],
        ["--dropout", "1"],
        ["--holdout", "1"],
        ["--groups", "3"],
        ["--network", "alexnet_owt", "--no-lrn"],
    ],
)
def test_a_wrong_command_line_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        train.parse(wrong)
    assert refusal.value.code == 2


def test_bad_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--data", str(tmp_path)]) == 1
    assert data.pictures_main(["--data", str(tmp_path), "--to", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert error.startswith("alexnet-triton train: ")


def test_a_folder_that_cannot_be_written_is_one_line(
    fashion_mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    for target, reason in (("file", "is there already"), ("file/inside", "cannot be written")):
        arguments = ["--data-dir", str(fashion_mnist_folder), "--to", str(tmp_path / target), "--count", "1"]
        assert data.pictures_main(arguments) == 1
        assert reason in capsys.readouterr().err


def test_a_run_that_stops_before_its_first_row_has_empty_curves(tmp_path: Path) -> None:
    draw_curves(History(), "alexnet on noise", tmp_path / "run.curves.png")
    with Image.open(tmp_path / "run.curves.png") as picture:
        assert picture.width > 500
