"""Batches: each image once, with its label, in the order and the part that are asked for."""

import numpy as np
from PIL import Image

from alexnet_triton.training.data import ArraySplit
from alexnet_triton.training.loading import batches, center_crop, in_order, share, shuffled


def test_batches_keep_images_and_labels_together_and_in_order() -> None:
    images = np.arange(50, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    split = ArraySplit(images, np.arange(50))
    seen = list(batches(split, in_order(50, 8), center_crop(32)))
    assert [len(labels) for _, labels in seen] == [8, 8, 8, 8, 8, 8, 2]
    for pixels, labels in seen:
        assert pixels.shape == (len(labels), 32, 32, 3)
        assert np.array_equal(pixels[:, 0, 0, 0], labels)


def test_each_epoch_sees_every_image_once_in_another_order() -> None:
    epochs = [np.concatenate([indices for indices, _ in shuffled(20, 5, 1, epoch)]) for epoch in (0, 1)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert not np.array_equal(*epochs)


def test_no_two_images_of_a_run_have_the_same_place() -> None:
    places = np.concatenate([places for epoch in range(3) for _, places in shuffled(22, 5, 1, epoch)])
    assert len(set(places.tolist())) == 60


def test_processes_share_a_step_without_overlap() -> None:
    whole = list(shuffled(24, 6, 1, 0))
    parts = [list(share(whole, rank, 2)) for rank in (0, 1)]
    for (indices, places), (first, first_places), (second, second_places) in zip(whole, *parts, strict=True):
        assert len(first) == len(second) == 3
        assert sorted([*first, *second]) == sorted(indices)
        assert sorted([*first_places, *second_places]) == sorted(places)


def test_a_cut_hears_of_the_place_in_the_run() -> None:
    split = ArraySplit(np.zeros((6, 8, 8), np.uint8), np.arange(6))
    chunks = list(shuffled(6, 3, 1, epoch=2))

    def place_as_pixels(image: Image.Image, place: int) -> np.ndarray:
        return np.full((1, 1, 3), place, np.uint8)

    seen = [images[:, 0, 0, 0].tolist() for images, _ in batches(split, chunks, place_as_pixels)]
    assert seen == [[12, 13, 14], [15, 16, 17]]
