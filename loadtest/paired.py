"""Whether one of two versions is slower, from pairs of runs: Hodges and Lehmann's estimate and Wilcoxon's interval.

Source: Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3rd edition, 3.2 and 3.3. The interval is exact
for every symmetric distribution, so that one run which the machine disturbed does not decide, as it would in a mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loadtest.errors import SettingError

Decision = Literal["slower", "not slower", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """How much longer the new version takes, as a ratio: 1.1 is a tenth longer. `confidence` is what is reached."""

    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int

    @property
    def differs(self) -> bool:
        """Whether there is a difference at all."""
        return not self.low <= 1.0 <= self.high

    def decide(self, limit: float) -> Decision:
        """Whether it is slower by more than `limit`, a part of 1."""
        if self.low > 1 + limit:
            return "slower"
        return "not slower" if self.high <= 1 + limit else "undecided"


def estimate(ratios: Sequence[float], confidence: float) -> Estimate:
    """The ratio behind paired ratios, new to old, all above 0.

    Raises:
        SettingError: too few pairs for the confidence.
    """
    pairs = len(ratios)
    cut = _cut(pairs, confidence)
    logs = [math.log(each) for each in ratios]
    averages = sorted((logs[i] + logs[j]) / 2 for i in range(pairs) for j in range(i, pairs))
    middle = (averages[(len(averages) - 1) // 2] + averages[len(averages) // 2]) / 2
    reached = 1 - 2 * sum(_rank_sums(pairs)[: cut + 1]) / 2**pairs
    return Estimate(math.exp(middle), math.exp(averages[cut]), math.exp(averages[-1 - cut]), reached, pairs)


def fewest_pairs(confidence: float) -> int:
    """Pairs without which no interval reaches the confidence."""
    return math.ceil(1 - math.log2(1 - confidence))


def _cut(pairs: int, confidence: float) -> int:
    """How many of the sorted averages may be left out at each end."""
    if not 0.5 <= confidence < 1 or pairs < fewest_pairs(confidence):
        needed = (
            f": a confidence of {confidence:g} takes {fewest_pairs(confidence)} or more"
            if 0.5 <= confidence < 1
            else ""
        )
        raise SettingError(f"--pairs {pairs} --confidence {confidence:g}{needed or ': give 0.5 to 0.999'}")
    counts, below, cut = _rank_sums(pairs), 0, -1
    while 2 * (below + counts[cut + 1]) <= (1 - confidence) * 2**pairs:
        cut += 1
        below += counts[cut]
    return cut


def _rank_sums(pairs: int) -> list[int]:
    """How many of the 2^n sign patterns have each sum of signed ranks."""
    counts = [1]
    for rank in range(1, pairs + 1):
        longer = counts + [0] * rank
        for total, count in enumerate(counts):
            longer[total + rank] += count
        counts = longer
    return counts
