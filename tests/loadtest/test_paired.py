"""The decision between two versions, in simulation."""

import itertools

import numpy as np
import pytest

from alexnet_triton.loadtest.compare import estimate, fewest_pairs
from alexnet_triton.loadtest.errors import SettingError

TRIALS, PAIRS, LIMIT = 200, 20, 0.05


def _simulate(slower: float, seed: int) -> np.ndarray:
    """Ratios of pairs: 2 % of noise a run, a machine that drifts by 20 %, and one run in 100 that is disturbed."""
    random = np.random.default_rng(seed)
    drift = np.repeat(np.linspace(1.0, 1.2, PAIRS), 2).reshape(PAIRS, 2)
    noise = random.lognormal(0, 0.02, (PAIRS, 2)) * np.where(random.random((PAIRS, 2)) < 0.01, 1.5, 1.0)
    old, new = (drift * noise * [1.0, 1.0 + slower]).T
    return new / old


def test_a_version_and_itself_do_not_differ() -> None:
    found = [estimate(_simulate(0.0, seed), 0.99) for seed in range(TRIALS)]
    assert sum(not each.differs for each in found) >= TRIALS * 19 / 20
    assert sum(each.decide(LIMIT) == "slower" for each in found) == 0


def test_a_tenth_is_found() -> None:
    found = [estimate(_simulate(0.1, seed), 0.99) for seed in range(TRIALS)]
    assert sum(each.differs for each in found) >= TRIALS * 19 / 20
    assert sum(each.decide(0.0) == "slower" for each in found) >= TRIALS * 19 / 20
    assert np.median([each.ratio for each in found]) == pytest.approx(1.1, rel=0.01)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Every pattern of signs on distinct sizes once: what the exact distribution is made of."""
    sizes = 1.5 ** np.arange(10) / 100
    signs = itertools.product((1, -1), repeat=10)
    found = [estimate(np.exp(sizes * sign), 0.95) for sign in signs]
    assert np.mean([not each.differs for each in found]) == pytest.approx(found[0].confidence, abs=1e-9)
    assert 0.95 <= found[0].confidence < 0.96


@pytest.mark.parametrize(("confidence", "pairs"), [(0.95, 6), (0.99, 8)])
def test_too_few_pairs(confidence: float, pairs: int) -> None:
    assert fewest_pairs(confidence) == pairs
    estimate([1.1] * pairs, confidence)
    with pytest.raises(SettingError, match=f"takes {pairs} or more"):
        estimate([1.1] * (pairs - 1), confidence)
