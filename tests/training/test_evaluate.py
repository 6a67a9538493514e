"""Accuracy, crops and confusion against direct computations."""

import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from alexnet_triton.training import checkpoint, evaluate
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.data import ArraySplit, FileSplit, answered, name_of
from alexnet_triton.training.device import Group
from alexnet_triton.training.evaluate import merge, predict, write_mistakes
from alexnet_triton.training.loading import center_crop, ten_crops
from alexnet_triton.training.log import accuracy, confusion, cross_entropy, topk_hits
from alexnet_triton.training.model import AlexNet, NetworkConfig, Normalize


def test_accuracy_counts_the_first_and_the_first_five() -> None:
    scores = np.tile(np.arange(10.0), (3, 1))  # the best is 9, the fifth 5
    measured = accuracy(scores, np.array([9, 5, 4]))
    assert (measured.top1, measured.top5, measured.images) == (1 / 3, 2 / 3, 3)
    assert topk_hits(scores, np.array([9, 5, 4]), 6) == 1


def test_of_equal_scores_the_first_class_wins() -> None:
    assert topk_hits(np.full((2, 3), 0.5), np.array([0, 1]), 1) == 0.5


def test_cross_entropy_and_confusion() -> None:
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]])
    labels = np.array([0, 1, 1])
    assert cross_entropy(probabilities, labels) == pytest.approx(-np.log([0.5, 0.75, 0.1]).mean())
    assert confusion(probabilities, labels).tolist() == [[1, 0], [1, 1]]


@pytest.fixture
def pixels() -> np.ndarray:
    """256 x 256 pixels, so that crops of 224 are slices: uint8 [256, 256, 3]."""
    return np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)


def test_one_crop_is_the_centre(pixels: np.ndarray) -> None:
    assert np.array_equal(center_crop(224)(Image.fromarray(pixels), 0), pixels[16:240, 16:240])


def test_ten_crops_are_corners_centre_and_their_reflections(pixels: np.ndarray) -> None:
    views = ten_crops(224)(Image.fromarray(pixels), 0)
    expected = [pixels[:224, :224], pixels[:224, 32:], pixels[32:, :224], pixels[32:, 32:], pixels[16:240, 16:240]]
    assert np.array_equal(views, np.stack([*expected, *(view[:, ::-1] for view in expected)]))


def test_ten_crops_of_a_wide_image_are_of_its_central_square(pixels: np.ndarray) -> None:
    wide = np.concatenate([np.zeros((256, 100, 3), np.uint8), pixels, np.zeros((256, 100, 3), np.uint8)], axis=1)
    assert np.array_equal(ten_crops(224)(Image.fromarray(wide), 0), ten_crops(224)(Image.fromarray(pixels), 0))


class ColourNet(nn.Module):
    """Mean colours as logits: float [N, 3, S, S] to [N, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def test_probabilities_of_ten_crops_are_averaged(pixels: np.ndarray) -> None:
    images = np.stack([pixels, pixels[::-1], pixels.transpose(1, 0, 2)])
    split = ArraySplit(images, np.array([0, 1, 2]))
    normalize = Normalize((127.0, 127.0, 127.0), (0.5, 0.5, 0.5))
    answers, labels = predict(ColourNet(), normalize, split, ten_crops(224), precision="fp32")
    assert labels.tolist() == [0, 1, 2]
    for image, answer in zip(images, answers, strict=True):
        views = torch.from_numpy(ten_crops(224)(Image.fromarray(image), 0)).double()
        expected = ((views - 127) / 0.5).mean(dim=(1, 2)).softmax(dim=1).mean(dim=0)
        np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-4)


def test_processes_that_share_the_images_give_the_answers_of_one() -> None:
    images = np.random.default_rng(0).integers(0, 256, (430, 8, 8, 3), np.uint8)  # batches of 100, the last one short
    split, normalize = ArraySplit(images, np.arange(430)), Normalize((127.0,) * 3, (60.0,) * 3)
    shares: list[list[tuple[np.ndarray, np.ndarray]]] = []

    class OneOfTwo(Group):
        def gather(self, value: Any) -> list[Any]:
            shares.append(value)
            return [value]

    def answers(group: Group) -> tuple[np.ndarray, np.ndarray]:
        return predict(ColourNet(), normalize, split, center_crop(8), group=group)

    whole, labels = answers(Group())
    for rank in (0, 1):
        answers(OneOfTwo(rank, 2))
    together, in_order = merge(shares)
    assert np.array_equal(together, whole)
    assert np.array_equal(in_order, labels)
    assert labels.tolist() == list(range(430))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow network of random weights, and 12 test images of two classes."""
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / "pets" / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "pets" / split / name / f"{number}.png")
    torch.manual_seed(0)
    network = AlexNet(NetworkConfig("alexnet", classes=2, width=0.05))
    mean, std = (127.0, 127.0, 127.0), (60.0, 60.0, 60.0)
    checkpoint.save(
        Checkpoint(network.config, network.state_dict(), ("cat", "dog"), mean, std, "pets"), folder / "pets.pt"
    )
    return folder


@pytest.mark.parametrize("crops", [1, 10])
def test_the_command_prints_and_writes_the_same_figures(
    trained: Path, tmp_path: Path, crops: int, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, figures, page = tmp_path / "confusion.png", tmp_path / "figures.json", tmp_path / "mistakes.html"
    files = ["--confusion", str(picture), "--json", str(figures), "--mistakes", str(page)]
    data = str(trained / "pets")
    assert evaluate.main([str(trained / "pets.pt"), "--data", data, "--crops", str(crops), *files]) == 0
    written = json.loads(figures.read_text())
    counts = np.array(written["confusion"])
    assert counts.sum() == written["images"] == 12
    assert counts.sum(axis=1).tolist() == [6, 6]
    assert written["top1"] == np.trace(counts) / 12
    assert (written["top1_error"], written["top5"], written["crops"]) == (1 - written["top1"], 1.0, crops)
    assert f"{written['top1']:.4f}   {written['top1_error']:.4f}" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.format == "PNG"
    mistakes = 12 - np.trace(counts)
    assert mistakes > 0
    assert page.read_text().count("<figure ") == mistakes
    assert f"The {mistakes} surest of {mistakes} mistakes in 12 images" in page.read_text()


def test_other_classes_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained / "pets", tmp_path / "pets")
    for split in ("train", "test"):
        (tmp_path / "pets" / split / "dog").rename(tmp_path / "pets" / split / "wolf")
    assert evaluate.main([str(trained / "pets.pt"), "--data", str(tmp_path / "pets")]) == 1
    error = capsys.readouterr().err
    assert "its 2 classes are not the 2 of" in error
    assert error.count("\n") == 1


def test_the_surest_mistakes_come_first_with_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "WORST", 2)
    split = ArraySplit(np.zeros((5, 28, 28), np.uint8), np.array([0, 1, 1, 0, 1]))
    answers = np.array([[0.9, 0.1], [0.6, 0.4], [0.99, 0.01], [0.3, 0.7]])
    write_mistakes(tmp_path / "page.html", split, np.array([0, 1, 2, 3]), answers, ("<cat>", "dog"))
    text = unescape((tmp_path / "page.html").read_text())
    assert re.findall(r"shows: (.*?)</b><small>(.*?)</small>", text) == [
        ("dog", "image 00002"),
        ("<cat>", "image 00003"),
    ]
    assert "The 2 surest of 3 mistakes in 4 images" in text
    assert 'id="most" checked' in text


def test_no_mistakes_are_a_page_too(tmp_path: Path) -> None:
    split = ArraySplit(np.zeros((1, 8, 8, 3), np.uint8), np.array([0]))
    write_mistakes(tmp_path / "page.html", split, np.array([0]), np.array([[0.9, 0.1]]), ("cat", "dog"))
    assert "The 0 surest of 0 mistakes in 1 images" in (tmp_path / "page.html").read_text()


def test_damaged_images_do_not_shift_the_others(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    split = FileSplit(paths, np.array([0, 0, 1, 1]))
    assert answered(split, frozenset([paths[1]])).tolist() == [0, 2, 3]
    assert name_of(split, 2) == str(paths[2])


@pytest.mark.parametrize("name", ["file/page.html", "folder"])
def test_a_page_that_cannot_be_written_is_one_line(
    trained: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    words = [str(trained / "pets.pt"), "--data", str(trained / "pets"), "--mistakes", str(tmp_path / name)]
    assert evaluate.main(words) == 1
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert error.count("\n") == 1
