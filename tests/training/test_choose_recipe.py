"""The choice of a recipe's settings: on images held out of training, never on test images."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_triton.training import run
from alexnet_triton.training.data import ArraySplit, Dataset
from alexnet_triton.training.recipe import RECIPES
from docs import choose_recipe
from docs.choose_recipe import GRIDS, STARTS, Outcome


class Untouched:
    """Test images that nothing may look at."""

    labels = np.zeros(4, np.int64)

    def image(self, index: int) -> None:
        raise AssertionError("a test image was looked at")


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    rng = np.random.default_rng(0)
    train = ArraySplit(rng.integers(0, 256, (40, 28, 28), np.uint8), np.arange(40) % 2)
    dataset = Dataset("noise", ("dark", "bright"), train, Untouched())
    monkeypatch.setattr(choose_recipe, "open_dataset", lambda source, folder: dataset)
    # Fifteen runs draw the curves that tests/training/test_run.py looks at: half of the time of this file.
    monkeypatch.setattr(run, "draw_curves", lambda *_: None)
    return dataset


@pytest.mark.parametrize("recipe", GRIDS)
def test_every_setting_is_measured_on_held_out_images(
    dataset: Dataset, tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "choice.json"
    smallest = ["--budget", "0.01", "--width", "0.05", "--held-out", "0.2"]
    assert choose_recipe.main(["--recipe", recipe, *smallest, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert (report["train_images"], report["held_out_images"], report["complete"]) == (32, 8, True)
    assert [row["setting"] for row in report["settings"]] == list(GRIDS[recipe])
    assert all(row["trained_images"][0] > 0 for row in report["settings"])
    printed = capsys.readouterr().out
    assert all(f"\n{setting} " in printed for setting in GRIDS[recipe])
    highest = max(report["settings"], key=lambda row: row["top1"][0])
    assert report["best"] == highest["setting"]


@pytest.mark.parametrize("recipe", GRIDS)
def test_the_grid_is_seven_different_settings_and_stays_when_the_recipe_changes(recipe: str) -> None:
    recipes = [choose_recipe.make_recipe(recipe, setting, 9.0, 0) for setting in GRIDS[recipe]]
    assert len(set(recipes)) == 7
    assert all((each.holdout, each.budget_s) == (0.0, 9.0) for each in recipes)
    varied = {field for changes in GRIDS[recipe].values() for field in changes}
    assert varied <= STARTS[recipe].keys()


def test_a_recipe_is_one_of_its_grid() -> None:
    for name, start in STARTS.items():
        assert {field: getattr(RECIPES[name], field) for field in start} in [
            {**start, **changes} for changes in GRIDS[name].values()
        ]


def test_the_first_of_equally_good_settings_is_chosen() -> None:
    outcomes = [
        Outcome(name, {}, top1, [1, 1]) for name, top1 in (("a", [0.5, 0.6]), ("b", [0.7, 0.6]), ("c", [0.6, 0.7]))
    ]
    assert choose_recipe.best(outcomes).setting == "b"


class Interrupting:
    """Training images that interrupt the process when training asks for one; it has looked at each once before."""

    labels = np.arange(40) % 2

    def __init__(self) -> None:
        self.left = 40

    def image(self, index: int) -> Image.Image:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return Image.new("RGB", (28, 28))


def test_an_interruption_says_what_is_there(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = replace(dataset, train=Interrupting())
    monkeypatch.setattr(choose_recipe, "open_dataset", lambda source, folder: stopped)
    assert choose_recipe.main(["--budget", "60", "--width", "0.05", "--held-out", "0.2"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "choose_recipe: stopped at 'start'; start again"


def test_nothing_held_out_is_one_line(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_recipe.main(["--held-out", "0"]) == 1
    error = capsys.readouterr().err
    assert "give --held-out a fraction above 0" in error
    assert error.count("\n") == 1
