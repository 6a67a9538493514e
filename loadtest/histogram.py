"""Times in HDR histograms: microseconds from 1 to an hour, to three digits."""

from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

LOWEST_US, HIGHEST_US = 1, 3_600_000_000
QUANTILES = (50.0, 90.0, 99.0, 99.9)


def new_histogram(digits: int = 3) -> HdrHistogram:
    """An empty one."""
    return HdrHistogram(LOWEST_US, HIGHEST_US, digits)


def record(histogram: HdrHistogram, seconds: float) -> None:
    """Add one time; what is out of range enters at its end."""
    histogram.record_value(min(max(LOWEST_US, round(seconds * 1e6)), HIGHEST_US))


@dataclass(frozen=True)
class Times:
    """A histogram's figures in milliseconds, and the histogram itself in HdrHistogram's own V2 encoding."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    histogram: str = ""

    @classmethod
    def of(cls, histogram: HdrHistogram, keep: bool = True) -> "Times":
        """The figures of a histogram, all 0 where it is empty."""
        count = histogram.get_total_count()
        if not count:
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        p50, p90, p99, p999 = (histogram.get_value_at_percentile(each) / 1e3 for each in QUANTILES)
        encoded = histogram.encode().decode() if keep else ""
        mean, largest = histogram.get_mean_value() / 1e3, histogram.get_max_value() / 1e3
        return cls(count, mean, p50, p90, p99, p999, largest, encoded)
