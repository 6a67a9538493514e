"""Data sets by name and folder, and the errors of bad ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_triton.training import train
from alexnet_triton.training.data import Subset, damaged_paths, hold_out, open_dataset, pixel_statistics
from alexnet_triton.training.errors import DataError
from alexnet_triton.training.loading import batches, center_crop, in_order

TINY = ["--epochs", "1", "--batch", "32", "--width", "0.05"]


def write_photographs(folder: Path, train_images: int, test_images: int) -> Path:
    for split, count in (("train", train_images), ("test", test_images)):
        for name, colour in (("cat", "red"), ("dog", "blue")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 30), colour).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "pets", 3, 2)


def test_a_folder_of_photographs(photographs: Path) -> None:
    dataset = open_dataset(str(photographs))
    assert dataset.name == "pets"
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    image = dataset.test.image(3)
    assert image is not None
    assert image.getpixel((0, 0)) == (0, 0, 255)


def test_pixel_statistics(photographs: Path) -> None:
    pixels = pixel_statistics(open_dataset(str(photographs)).train)
    assert pixels.mean == (127.5, 0.0, 127.5)
    assert pixels.std == (127.5, 1.0, 127.5)  # never 0: pixels are divided by it
    half = 127.5**2
    np.testing.assert_allclose(pixels.covariance, [[half, 0, -half], [0, 0, 0], [-half, 0, half]])


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (["train"], "no folder train"),
        (["test"], "neither test/ nor val/"),
        (["train/cat"], "1 class folders"),
        (["train/cat", "train/dog"], "0 class folders"),
        (["test/dog"], r"pets/test: no folder for class 'dog' of .*pets/train"),
    ],
)
def test_what_is_missing_is_one_line(
    photographs: Path, removed: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in removed:
        shutil.rmtree(photographs / name)
    with pytest.raises(DataError, match=message):
        open_dataset(str(photographs))
    assert train.main(["--data", str(photographs)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_images_is_named(photographs: Path, split: str) -> None:
    for image in (photographs / split / "dog").iterdir():
        image.rename(image.with_suffix(".txt"))
    with pytest.raises(DataError, match=f"pets/{split}/dog: no images for class 'dog'"):
        open_dataset(str(photographs))


def test_a_class_that_is_only_tested_is_named(photographs: Path) -> None:
    (photographs / "test" / "mouse").mkdir()
    with pytest.raises(DataError, match=r"pets/train: no folder for class 'mouse'"):
        open_dataset(str(photographs))


def test_a_damaged_photograph_among_good_ones_is_named_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_photographs(tmp_path / "pets", 60, 50)
    for damaged in ("train/cat/1.png", "test/dog/7.png"):
        (folder / damaged).write_text("no picture")
    output = tmp_path / "pets.pt"
    assert train.main(["--data", str(folder), "--output", str(output), *TINY]) == 0
    error = capsys.readouterr().err
    assert error.count("skipped") == 2
    assert "train/cat/1.png: not a JPEG, PNG, WebP, GIF or BMP image; skipped (1 of 120 images)" in error
    metrics = json.loads(output.with_suffix(".json").read_text())["metrics"]
    assert (metrics["skipped_images"], metrics["images"]) == (2, 99)


def test_too_many_damaged_photographs_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_photographs(tmp_path / "pets", 60, 1)
    for number in (1, 2):
        (folder / "train" / "cat" / f"{number}.png").write_text("no picture")
    assert train.main(["--data", str(folder), "--output", str(tmp_path / "pets.pt"), *TINY]) == 1
    summary, named, stopped = capsys.readouterr().err.splitlines()
    assert "; 2 damaged, " in summary
    assert "skipped (1 of 120 images)" in named
    assert "2 of 120 images are damaged, more than 1%: remove or replace them" in stopped
    assert not (tmp_path / "pets.pt").exists()


def test_damaged_photographs_take_their_labels_with_them(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "pets", 100, 1)
    (folder / "train" / "cat" / "5.png").write_text("no picture")
    split = open_dataset(str(folder)).train
    seen = list(batches(split, in_order(200, 64), center_crop(8)))
    assert [len(labels) for _, labels in seen] == [63, 64, 64, 8]
    for images, labels in seen:
        assert np.array_equal(images[:, 0, 0, 2] == 255, labels == 1)
    assert len(damaged_paths(split)) == 1


def test_held_out_images_are_the_same_fraction_of_each_class_every_time(photographs: Path) -> None:
    split = open_dataset(str(photographs)).train
    rest, held = hold_out(split, 0.3)
    assert isinstance(held, Subset)
    assert held.labels.tolist() == [0, 1]
    assert rest.labels.tolist() == [0, 0, 1, 1]
    again = hold_out(split, 0.3)[1]
    assert isinstance(again, Subset)
    assert np.array_equal(again.indices, held.indices)
    assert hold_out(split, 0.0) == (split, None)
