"""When requests are to be sent: constant or Poisson arrivals, at a rate that may change over time."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import SettingError

Arrivals = Literal["constant", "poisson"]
Shape = Literal["flat", "step", "spike", "day"]
MOST_PER_S = 100_000.0
MOST_REQUESTS = 50_000_000
STEPS = 5
SPIKE = 4.0  # times the rate, for a tenth of the time
GRID = 100_001


@dataclass(frozen=True)
class Plan:
    """The intended load.

    Attributes:
        rate_per_s: of requests; of the shapes, `flat` keeps it, `step` climbs to it in five steps, `spike` has four
            times as much for a tenth of the time, `day` swings between a fifth of it and all of it, as a day does.
        duration_s: the measured time, behind `warmup_s`.
    """

    rate_per_s: float
    duration_s: float
    warmup_s: float = 0.0
    arrivals: Arrivals = "constant"
    shape: Shape = "flat"

    def __post_init__(self) -> None:
        """Raises SettingError for what cannot be."""
        if not 0 < self.rate_per_s <= MOST_PER_S:
            raise SettingError(f"--rate {self.rate_per_s:g}: give more than 0 and at most {MOST_PER_S:,.0f} a second")
        check_times(self.duration_s, self.warmup_s)
        if self.rate_per_s * (self.warmup_s + self.duration_s) > MOST_REQUESTS:
            raise SettingError(f"more than {MOST_REQUESTS:,} requests: lower --rate or --duration")


def check_times(duration_s: float, warmup_s: float) -> None:
    """Raises SettingError for times that cannot be."""
    if not 0 < duration_s <= 7 * 86_400 or not 0 <= warmup_s <= 86_400:
        raise SettingError(f"--duration {duration_s:g} s, --warmup {warmup_s:g} s: give times of at most a week")


def rate_at(plan: Plan, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Requests a second at moments of the measured time; before it, the first of it."""
    part = np.clip(seconds / plan.duration_s, 0.0, 1.0)
    if plan.shape == "step":
        factor = np.minimum(np.floor(part * STEPS) + 1, STEPS) / STEPS
    elif plan.shape == "spike":
        factor = np.where((part >= 0.45) & (part < 0.55), SPIKE, 1.0)
    elif plan.shape == "day":
        factor = 0.6 - 0.4 * np.cos(2 * math.pi * part)
    else:
        factor = np.ones_like(part)
    return plan.rate_per_s * factor


def intended_times(plan: Plan, seed: int) -> NDArray[np.float64]:
    """Seconds from the start of the warm-up, ascending.

    The n-th request is due when the integral of the rate reaches n, or for Poisson arrivals the sum of n
    exponential draws: an inhomogeneous Poisson process by inversion (Cinlar, 1975, chapter 4.7).
    """
    moments = np.linspace(0.0, plan.warmup_s + plan.duration_s, GRID)
    rates = rate_at(plan, moments - plan.warmup_s)
    steps = np.diff(moments) * (rates[1:] + rates[:-1]) / 2
    expected = np.concatenate(([0.0], np.cumsum(steps)))
    total = expected[-1]
    if plan.arrivals == "constant":
        due = np.arange(math.ceil(total - 1e-9), dtype=np.float64)
    else:
        count = int(total + 6 * math.sqrt(total) + 20)
        due = np.cumsum(np.random.default_rng(seed).exponential(size=count))
    return np.interp(due[due < total], expected, moments)
