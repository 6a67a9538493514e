"""Random views and lighting against direct computations on known pixels."""

import numpy as np
import pytest
from PIL import Image

from alexnet_triton.training.loading import Lighting, random_box, random_crop


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
    cut = random_crop(32, seed=7)
    views = [cut(ramp, place) for place in range(200)]
    reflected = sum(int(view[0, 0, 0]) > int(view[0, -1, 0]) for view in views)
    assert 80 < reflected < 120
    assert np.array_equal(views[3], cut(ramp, 3))
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
