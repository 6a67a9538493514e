"""Folders of photographs, and batches of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.augment import random_box, random_cut
from training.data import ArraySplit, batches, center_cut, in_order, open_dataset, pixel_statistics, shuffled
from training.errors import DataError


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("test", 2)):
        for name, colour in (("cat", "red"), ("dog", "blue")):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
    return tmp_path / "pets"


def test_a_folder_of_photographs(photographs: Path) -> None:
    dataset = open_dataset(str(photographs))
    assert dataset.name == "pets"
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.test.image(3).getpixel((0, 0)) == (0, 0, 255)
    assert pixel_statistics(dataset.train)[0] == (127.5, 0.0, 127.5)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("train", "no folder train"),
        ("test", "neither test/ nor val/"),
        ("train/cat", "1 class folders"),
        ("test/dog", "no images for class 'dog'"),
        ("train/dog/*", "no images for class 'dog'"),
    ],
)
def test_what_is_missing_is_named(photographs: Path, removed: str, message: str) -> None:
    for entry in sorted(photographs.glob(removed + "/**/*"), reverse=True) + list(photographs.glob(removed)):
        entry.rmdir() if entry.is_dir() else entry.unlink()
    with pytest.raises(DataError, match=message):
        open_dataset(str(photographs))


def test_a_damaged_photograph_is_named(photographs: Path) -> None:
    (photographs / "train" / "cat" / "1.png").write_text("no picture")
    dataset = open_dataset(str(photographs))
    with pytest.raises(DataError, match=r"cat/1.png: not a JPEG"):
        list(batches(dataset.train, in_order(6, 2), center_cut(227)))


def test_batches_keep_images_and_labels_together_and_in_order() -> None:
    images = np.arange(50, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    split = ArraySplit(images, np.arange(50))
    seen = list(batches(split, in_order(50, 8), center_cut(32)))
    assert [len(labels) for _, labels in seen] == [8, 8, 8, 8, 8, 8, 2]
    for pixels, labels in seen:
        assert pixels.shape == (len(labels), 32, 32, 3)
        assert np.array_equal(pixels[:, 0, 0, 0], labels)


def test_each_epoch_sees_every_image_once_in_another_order() -> None:
    chunks = shuffled(20, 5, seed=1)
    epochs = [np.concatenate([next(chunks) for _ in range(4)]) for _ in range(2)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_random_views_stay_inside_and_repeat_with_their_seed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        left, upper, right, lower = random_box(500, 375, 227, rng)
        assert left >= 0
        assert upper >= 0
        assert right <= 500
        assert lower <= 375
        assert right - left == pytest.approx(375 * 227 / 256)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    first, again, other = random_cut(32, 7)(image, 3), random_cut(32, 7)(image, 3), random_cut(32, 7)(image, 4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
