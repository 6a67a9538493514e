"""The paper's figures from a checkpoint: the right kernels, the right neighbours, pictures that can be read.

And the paper's sections: the code that the README names for each exists.
"""

import re
import shutil
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_triton.training import checkpoint, figures
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.model import AlexNet, NetworkConfig
from main_job import ROOT

SECTIONS = {"2", "3.1", "3.2", "3.3", "3.4", "3.5", "4.1", "4.2", "5", "6", "6.1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow network of random weights, and images of two colours."""
    folder = tmp_path_factory.mktemp("figures")
    torch.manual_seed(0)
    network = AlexNet(NetworkConfig("alexnet", classes=2, width=0.1))
    mean, std = (127.0,) * 3, (60.0,) * 3
    trained = Checkpoint(network.config, network.state_dict(), ("blue", "red"), mean, std, "colours")
    checkpoint.save(trained, folder / "colours.pt")
    rng = np.random.default_rng(0)
    for name, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.array(colour, np.uint8) + rng.integers(0, 40, (32, 48, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    return folder


def test_one_command_draws_both_figures(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--images", str(folder / "images"), "--queries", "2", "--to", str(tmp_path / "drawn")]
    assert figures.main([str(folder / "colours.pt"), *options]) == 0
    printed = capsys.readouterr().out
    for name in ("kernels.png", "nearest.png"):
        assert str(tmp_path / "drawn" / name) in printed
        with Image.open(tmp_path / "drawn" / name) as picture:
            assert picture.format == "PNG"
            assert picture.width > 500


def test_the_nearest_are_of_the_same_colour_and_never_the_query_itself(folder: Path) -> None:
    trained, paths = checkpoint.load(folder / "colours.pt"), figures.find_files(folder / "images")
    with figures.progress_bar(visible=False) as progress:
        found = figures.describe_images(trained, paths, progress, "images")
    assert found.features.shape == (16, trained.network.units(4096))
    for path, features in zip(found.paths, found.features, strict=True):
        nearest = figures.nearest_images(path, features, found)
        assert len(nearest) == 6
        assert path not in nearest
        assert {each.parent.name for each in nearest} == {path.parent.name}


def test_nearest_is_by_euclidean_distance_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path in paths:
        path.touch()
    searched = figures.FoundImages(paths, np.array([[0, 0], [3, 4], [0, 6], [1, 1]], np.float32))
    assert figures.nearest_images(paths[0], searched.features[0], searched, 2) == [paths[3], paths[1]]


def test_kernels_stand_row_by_row_each_scaled_by_its_largest_weight() -> None:
    weights = np.zeros((18, 3, 2, 2), np.float32)
    weights[17, 0] = [[4, 2], [0, -4]]
    grid = figures.kernel_grid(weights)
    assert grid.shape == (2 * 3 + 1, 16 * 3 + 1, 3)
    assert grid[4:6, 4:6, 0].tolist() == [[1.0, 0.75], [0.5, 0.0]], "second row, second column"
    assert (grid[4:6, 4:6, 1:] == 0.5).all()
    assert (grid[0] == 1).all()


def test_queries_are_spread_over_the_classes(folder: Path) -> None:
    found = figures.find_files(folder / "images")
    assert [path.parent.name for path in figures.spread(found, 2)] == ["blue", "red"]
    assert figures.spread(found, 99) == found


@pytest.mark.parametrize("case", ["empty", "damaged", "absent"])
def test_bad_input_is_one_line(folder: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    if case == "damaged":
        shutil.copytree(folder / "images", images)
        (images / "red" / "4.png").write_bytes(b"no image")
    elif case == "empty":
        images.mkdir()
    said = {"empty": "no images in it", "absent": "no images in it", "damaged": "1 of 16 images are damaged"}
    options = ["--images", str(images), "--queries", "1", "--to", str(tmp_path)]
    assert figures.main([str(folder / "colours.pt"), *options]) == 1
    error = capsys.readouterr().err
    assert said[case] in error
    assert error.count("\n") == 1


def table_of_the_paper() -> list[tuple[str, str]]:
    """Section and dotted name of each code span in the last column of the table."""
    text = (ROOT / "training/README.md").read_text()
    table = text.partition("## The 2012 paper")[2].partition("## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if re.match(r"\| \d", line)]
    return [(section, name) for section, _, code in rows for name in re.findall(r"`([^`]+)`", code)]


def test_every_section_of_the_paper_has_code() -> None:
    assert {section for section, _ in table_of_the_paper()} == SECTIONS


@pytest.mark.parametrize("name", sorted({name for _, name in table_of_the_paper()}))
def test_the_code_of_a_section_exists(name: str) -> None:
    assert resolve_name(f"alexnet_triton.{name}") is not None
