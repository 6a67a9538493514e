"""Intended moments."""

import numpy as np
import pytest

from alexnet_triton.loadtest.errors import SettingError
from alexnet_triton.loadtest.workload import SPIKE, STEPS, Plan, intended_times


def test_constant_arrivals_are_evenly_apart() -> None:
    times = intended_times(Plan(200, 5, 1), seed=0)
    assert len(times) == 1200
    np.testing.assert_allclose(times, np.arange(1200) / 200, atol=1e-9)


def test_poisson_arrivals_have_exponential_gaps() -> None:
    gaps = np.diff(intended_times(Plan(1000, 50, arrivals="poisson"), seed=0))
    assert gaps.mean() == pytest.approx(1e-3, rel=0.02)
    assert gaps.std() == pytest.approx(1e-3, rel=0.03)
    assert np.mean(gaps > 1e-3) == pytest.approx(np.exp(-1), abs=0.01)


def test_poisson_arrivals_are_the_seed_s() -> None:
    plan = Plan(50, 10, arrivals="poisson")
    np.testing.assert_array_equal(intended_times(plan, 1), intended_times(plan, 1))
    assert len(intended_times(plan, 1)) != len(intended_times(plan, 2))


def _rates(plan: Plan, bins: int) -> np.ndarray:
    counts, _ = np.histogram(intended_times(plan, 0) - plan.warmup_s, bins, (0, plan.duration_s))
    return counts / plan.duration_s * bins


def test_step_climbs_in_equal_steps() -> None:
    np.testing.assert_allclose(_rates(Plan(500, 50, 2, shape="step"), STEPS), 100 * np.arange(1, 6), rtol=0.01)


def test_spike_is_a_tenth_of_the_time() -> None:
    rates = _rates(Plan(100, 100, 2, shape="spike"), 20)
    np.testing.assert_allclose(rates[9:11], SPIKE * 100, rtol=0.01)
    np.testing.assert_allclose(np.delete(rates, [9, 10]), 100, rtol=0.01)


def test_day_swings_between_a_fifth_and_all() -> None:
    rates = _rates(Plan(1000, 100, 2, shape="day", arrivals="poisson"), 50)
    assert rates[[0, -1]] == pytest.approx([200, 200], rel=0.2)
    assert rates[24:26] == pytest.approx([1000, 1000], rel=0.1)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e6])
def test_impossible_rates(rate: float) -> None:
    with pytest.raises(SettingError, match="--rate"):
        Plan(rate, 10)


def test_more_requests_than_memory() -> None:
    with pytest.raises(SettingError, match="lower --rate or --duration"):
        Plan(90_000, 3600)
