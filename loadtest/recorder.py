"""Counts and HDR histograms of a load's requests, over all of it and by windows of time."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from hdrh.histogram import HdrHistogram

from alexnet_triton.loadtest.workload import TIMEOUT, WRONG, Request, RequestFault

LOWEST_US, HIGHEST_US = 1, 3_600_000_000
QUANTILES = {"p50": "p50_ms", "p90": "p90_ms", "p99": "p99_ms", "p99.9": "p999_ms"}  # name to the field of Times
LATENCIES = {**QUANTILES, "max": "max_ms", "mean": "mean_ms"}


def new_histogram(digits: int = 3) -> HdrHistogram:
    """An empty histogram of microseconds from 1 to an hour, to `digits` digits."""
    return HdrHistogram(LOWEST_US, HIGHEST_US, digits)


def record(histogram: HdrHistogram, seconds: float) -> None:
    """Add one time; a value out of range counts as the nearest in it."""
    histogram.record_value(min(max(LOWEST_US, round(seconds * 1e6)), HIGHEST_US))


def mean_us(histogram: HdrHistogram) -> float:
    """The mean in microseconds, from the buckets that have counts.

    The histogram's own `get_mean_value` says the same, but visits all 23,552 buckets, which takes 60 ms.
    """
    counts = np.ctypeslib.as_array(histogram.counts)
    used = np.flatnonzero(counts)
    lowest = [histogram.get_value_from_index(int(index)) for index in used]
    middles = [(low + histogram.get_highest_equivalent_value(low) + 1) // 2 for low in lowest]
    return float(np.dot(middles, counts[used])) / histogram.get_total_count()


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
        quantiles = histogram.get_percentile_to_value_dict([50.0, 90.0, 99.0, 99.9])
        p50, p90, p99, p999 = (value / 1e3 for value in quantiles.values())
        encoded = histogram.encode().decode() if keep else ""
        mean, largest = mean_us(histogram) / 1e3, histogram.get_max_value() / 1e3
        return cls(count, mean, p50, p90, p99, p999, largest, encoded)


EXAMPLES = 5
MOST_WINDOWS = 300


@dataclass
class _OpenWindow:
    times: HdrHistogram = field(default_factory=lambda: new_histogram(2))
    answered: int = 0
    failed: int = 0
    lag_s: float = 0.0


@dataclass(frozen=True)
class Window:
    """A piece of the run: requests by the moment they were intended for."""

    start_s: float
    per_s: float
    failed: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    lag_ms: float


@dataclass(frozen=True)
class Failure:
    """A kind of failure, how often, and a few of them in words."""

    name: str
    count: int
    examples: list[str]


class Recorder:
    """Counts requests that were intended for the measured time, in [`start_s`, `end_s`) of `perf_counter`.

    The latency of an answer, right or wrong, counts from the intended moment. A request that was given up counts with
    the time that it had waited. Refusals have a histogram of their own: they come
    sooner than answers, and would make the latencies look better.
    """

    def __init__(self) -> None:
        self.begin(0.0, 0.0)
        self.latency, self.service, self.lag, self.refusals = (new_histogram() for _ in range(4))
        self.by_priority: dict[int, HdrHistogram] = {}
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.sent = self.sent_in_time = self.right = self.finished_in_time = self.images = 0
        self._windows: dict[int, _OpenWindow] = {}

    def begin(self, start_s: float, end_s: float) -> None:
        """Count from `start_s` to `end_s`; what comes before is warm-up."""
        self.start_s, self.end_s = start_s, end_s
        self.width_s = max(1.0, (end_s - start_s) / MOST_WINDOWS)

    def note_sent(self, request: Request) -> None:
        """A request has left, `sent_s` says when."""
        if not self.start_s <= request.intended_s < self.end_s:
            return
        self.sent += 1
        self.sent_in_time += request.sent_s < self.end_s
        lag_s = request.sent_s - request.intended_s
        record(self.lag, lag_s)
        window = self._window(request)
        window.lag_s = max(window.lag_s, lag_s)

    def note_done(self, request: Request, fault: RequestFault | None, now_s: float) -> None:
        """A request was answered, refused or given up."""
        if fault is None and self.start_s <= now_s < self.end_s:
            self.finished_in_time += 1
            self.images += len(request.cases)
        if not self.start_s <= request.intended_s < self.end_s:
            return
        window = self._window(request)
        if fault is None:
            self.right += 1
            window.answered += 1
        else:
            self._note_failure(fault)
            window.failed += 1
        if fault is None or fault.name in (TIMEOUT, WRONG):
            self._note_times(request, window, now_s)
        else:
            record(self.refusals, now_s - request.intended_s)

    def _note_times(self, request: Request, window: _OpenWindow, now_s: float) -> None:
        latency_s = now_s - request.intended_s
        record(self.latency, latency_s)
        record(self.service, now_s - request.sent_s)
        record(window.times, latency_s)
        if request.priority:
            if request.priority not in self.by_priority:
                self.by_priority[request.priority] = new_histogram()
            record(self.by_priority[request.priority], latency_s)

    def _note_failure(self, fault: RequestFault) -> None:
        self.failures[fault.name] += 1
        examples = self.examples.setdefault(fault.name, [])
        if fault.detail and fault.detail not in examples and len(examples) < EXAMPLES:
            examples.append(fault.detail)

    def _window(self, request: Request) -> _OpenWindow:
        number = int((request.intended_s - self.start_s) / self.width_s)
        if number not in self._windows:  # a histogram takes longer to make than a request to send
            self._windows[number] = _OpenWindow()
        return self._windows[number]

    def windows(self) -> list[Window]:
        """The run over time."""
        return [self._describe(number, window) for number, window in sorted(self._windows.items())]

    def _describe(self, number: int, window: _OpenWindow) -> Window:
        times = Times.of(window.times, keep=False)
        start_s = number * self.width_s
        width_s = min(self.width_s, self.end_s - self.start_s - start_s)
        quantiles = (times.p50_ms, times.p90_ms, times.p99_ms, times.p999_ms)
        return Window(start_s, window.answered / width_s, window.failed, *quantiles, window.lag_s * 1e3)

    def failure_list(self) -> list[Failure]:
        """The kinds of failure, the most frequent first."""
        return [Failure(name, count, self.examples.get(name, [])) for name, count in self.failures.most_common()]
