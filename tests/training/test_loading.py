"""Crops against direct computations on known pixels; batches with each image once, in order, with its label."""

import numpy as np
import pytest
from PIL import Image

from alexnet_triton.training.data import ArraySplit
from alexnet_triton.training.loading import (
    Lighting,
    batches,
    center_crop,
    in_order,
    random_box,
    random_crop,
    share,
    shuffled,
)


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
    shares = [list(share(whole, rank, 2)) for rank in (0, 1)]
    for (indices, places), (first, first_places), (second, second_places) in zip(whole, *shares, strict=True):
        assert len(first) == len(second) == 3
        assert sorted([*first, *second]) == sorted(indices)
        assert sorted([*first_places, *second_places]) == sorted(places)


def test_a_crop_is_given_the_place_in_the_run() -> None:
    split = ArraySplit(np.zeros((6, 8, 8), np.uint8), np.arange(6))
    chunks = list(shuffled(6, 3, 1, epoch=2))

    def place_as_pixels(image: Image.Image, place: int) -> np.ndarray:
        return np.full((1, 1, 3), place, np.uint8)

    seen = [images[:, 0, 0, 0].tolist() for images, _ in batches(split, chunks, place_as_pixels)]
    assert seen == [[12, 13, 14], [15, 16, 17]]


def test_random_crops_stay_in_the_central_square_and_fill_it() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(500, 375, 227, rng) for _ in range(2000)])
    side = 375 * 227 / 256
    np.testing.assert_allclose(boxes[:, 2] - boxes[:, 0], side)
    np.testing.assert_allclose(boxes[:, 3] - boxes[:, 1], side)
    assert boxes[:, 0].min() == pytest.approx(62.5, abs=0.2)  # (500 - 375) / 2
    assert boxes[:, 2].max() == pytest.approx(437.5, abs=0.2)
    assert boxes[:, 1].min() == pytest.approx(0, abs=0.2)
    assert boxes[:, 3].max() == pytest.approx(375, abs=0.2)


def test_half_of_the_views_are_reflected_and_each_is_decided_by_its_place() -> None:
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    crop = random_crop(32, seed=7)
    views = [crop(ramp, place) for place in range(200)]
    reflected = sum(int(view[0, 0, 0]) > int(view[0, -1, 0]) for view in views)
    assert 80 < reflected < 120
    assert np.array_equal(views[3], crop(ramp, 3))
    assert not np.array_equal(views[3], random_crop(32, seed=8)(ramp, 3))


def test_lighting_is_the_papers_sum_over_components() -> None:
    """Against the sum of a_i * l_i * p_i computed for a covariance whose components are known."""
    first, second, third = np.array([3, 4, 0]) / 5, np.array([-4, 3, 0]) / 5, np.array([0, 0, 1])
    covariance = sum(
        variance * np.outer(component, component)
        for variance, component in ((900.0, first), (400.0, second), (100.0, third))
    )
    lighting = Lighting(covariance, deviation=0.1)
    shift = lighting.shift(np.array([1.0, 0.5, -2.0]))  # components in the order of their variance, least first
    signs = [
        np.sign(lighting.components[:, number] @ component) for number, component in enumerate((third, second, first))
    ]
    expected = 1.0 * 1.0 * third * signs[0] + 0.5 * 2.0 * second * signs[1] - 2.0 * 3.0 * first * signs[2]
    np.testing.assert_allclose(shift, expected, atol=1e-9)


def test_lighting_shifts_all_pixels_alike_and_stays_in_range() -> None:
    pixels = np.array([[[100, 100, 100], [0, 128, 255]]], np.uint8)
    covariance = np.full((3, 3), 60.0**2)  # grey data: one component, deviation 60 a channel
    seen = np.array([Lighting(covariance, 0.1)(pixels, np.random.default_rng(seed)) for seed in range(500)])
    shifts = seen[:, 0, 0].astype(int) - 100
    assert np.array_equal(shifts[:, 0], shifts[:, 1])
    assert shifts.std() == pytest.approx(6.0, rel=0.1)
    assert abs(shifts.mean()) < 1
    np.testing.assert_array_equal(seen[:, 0, 1], np.clip(np.array([0, 128, 255]) + shifts, 0, 255))
