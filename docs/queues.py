"""A pod of Triton as a bounded queue before as many instances as it has cores, simulated request by request.

Each instance takes the requests that wait, at most a batch, for the time that such a batch takes; a request that has
waited for MAX_WAIT is refused.
"""

import heapq
import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from alexnet_triton.export.settings import MAX_WAIT_S
from alexnet_triton.imaging import decode
from alexnet_triton.serving.engine import EngineConfig
from alexnet_triton.serving.plan_engine import load_engine
from alexnet_triton.serving.repository import Repository
from tests.serving.tiny import jpeg

# ---- what a pod takes


@dataclass(frozen=True)
class Service:
    """What a pod does with requests of one image.

    Attributes:
        batch_s: seconds that an instance takes for a batch of 1, 2, 3 and so on.
        instances: that work at the same time.
        max_wait_s: a request that has waited longer is refused.
    """

    batch_s: tuple[float, ...]
    instances: int
    max_wait_s: float = MAX_WAIT_S

    @property
    def rate(self) -> float:
        """Images a second, at most: with full batches."""
        return self.instances * len(self.batch_s) / self.batch_s[-1]


def measure_service(repository: Path, instances: int, repeats: int = 7) -> Service:
    """Time a published network and decoding, on one core: the median of some runs of each batch size.

    Raises:
        UserError: the repository cannot be read.
    """
    opened = Repository.open(repository, "cpu")
    version = max((path.name for path in (opened.path / "alexnet").iterdir() if path.name.isdigit()), key=int)
    size = opened.configs["alexnet"].max_batch_size
    engine = load_engine(opened.path / "alexnet" / version, EngineConfig(threads=1, max_batch_size=size), 0)
    engine.warm_up()
    image = jpeg(1, width=500, height=375)
    decoding_s = _time(lambda: decode(image, engine.input_size), repeats)
    pixels = np.zeros((size, engine.input_size, engine.input_size, 3), np.uint8)
    network_s = [_time(lambda n=n: engine.infer(pixels[:n]), repeats) for n in range(1, size + 1)]
    # A batch takes no less than a smaller one: two images have all cores, of which a busy pod has none to spare.
    rising = np.maximum.accumulate(np.array(network_s)) + decoding_s * np.arange(1, size + 1)
    return Service(tuple(map(float, rising)), instances)


def _time(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


# ---- queues, request by request


@dataclass
class _Pod:
    """Requests that wait, by the times of their arrivals, and those that are computed."""

    idle: int
    waiting: deque[int] = field(default_factory=deque)
    computed: int = 0

    @property
    def in_flight(self) -> int:
        return len(self.waiting) + self.computed


@dataclass(frozen=True)
class Outcome:
    """Of each request its seconds, NaN where it was refused; and the requests of a pod, on average over time."""

    seconds: np.ndarray  # float64 [requests]
    waiting: float
    computed: float

    @property
    def refused(self) -> float:
        """The share of requests that were refused."""
        return float(np.isnan(self.seconds).mean())

    def quantile(self, share: float) -> float:
        """Of the answers' seconds; NaN without an answer."""
        answered = self.seconds[~np.isnan(self.seconds)]
        return float(np.quantile(answered, share)) if answered.size else math.nan


class Queues:
    """Pods behind a gateway that sends each request to the one with the fewest in flight, in turn among equals."""

    def __init__(self, arrivals: np.ndarray, pods: int, service: Service) -> None:
        self._arrivals, self._service = arrivals.tolist(), service  # one by one, a list is faster than an array
        self._pods = [_Pod(service.instances) for _ in range(pods)]
        self._seconds = [math.nan] * len(self._arrivals)
        self._ends: list[tuple[float, int, int, tuple[int, ...]]] = []  # time, order, pod, requests
        self._order, self._turn, self._over = 0, 0, 0.0
        self._waited_s, self._computed_s = 0.0, 0.0

    def run(self) -> Outcome:
        for number, now in enumerate(self._arrivals):
            self._finish_until(now)
            pod = self._choose()
            self._pods[pod].waiting.append(number)
            self._begin(pod, now)
        self._finish_until(math.inf)
        duration = (self._over - self._arrivals[0]) * len(self._pods)
        return Outcome(np.array(self._seconds), self._waited_s / duration, self._computed_s / duration)

    def _choose(self) -> int:
        self._turn += 1
        count = len(self._pods)
        return min(((index + self._turn) % count for index in range(count)), key=lambda n: self._pods[n].in_flight)

    def _finish_until(self, until: float) -> None:
        while self._ends and self._ends[0][0] <= until:
            now, _, pod, requests = heapq.heappop(self._ends)
            self._over = now
            for request in requests:
                self._seconds[request] = now - self._arrivals[request]
            self._pods[pod].idle += 1
            self._pods[pod].computed -= len(requests)
            self._begin(pod, now)

    def _begin(self, number: int, now: float) -> None:
        """Compute what waits, where an instance is idle. What has waited too long is refused then."""
        pod, limit_s = self._pods[number], self._service.max_wait_s
        while pod.waiting and now - self._arrivals[pod.waiting[0]] > limit_s:
            pod.waiting.popleft()
            self._waited_s += limit_s
        if not pod.idle or not pod.waiting:
            return
        batch = tuple(pod.waiting.popleft() for _ in range(min(len(pod.waiting), len(self._service.batch_s))))
        took_s = self._service.batch_s[len(batch) - 1]
        pod.idle -= 1
        pod.computed += len(batch)
        self._waited_s += sum(now - self._arrivals[request] for request in batch)
        self._computed_s += len(batch) * took_s
        self._order += 1
        heapq.heappush(self._ends, (now + took_s, self._order, number, batch))


def simulate_queues(arrivals: np.ndarray, pods: int, service: Service) -> Outcome:
    """Requests at the given seconds, float64 [requests] in order, to pods of a constant number."""
    return Queues(arrivals, pods, service).run()


def poisson_arrivals(rate: float, count: int, seed: int = 0) -> np.ndarray:
    """Seconds, float64 [count], of callers who do not wait for each other."""
    return np.random.default_rng(seed).exponential(1 / rate, count).cumsum()


# ---- a pod by its utilisation

UTILISATIONS = np.array([0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98])
_UTILISATIONS = UTILISATIONS.tolist()
QUANTILES = (np.arange(100) + 0.5) / 100


@dataclass(frozen=True)
class Profile:
    """A pod at each of `UTILISATIONS`: latencies in seconds [utilisations, quantiles], and its requests."""

    service: Service
    latency_s: np.ndarray
    waiting: np.ndarray
    computed: np.ndarray

    def requests(self, share: float) -> tuple[float, float]:
        """Those that wait and those that are computed in a pod, between two utilisations in proportion."""
        above = min(max(bisect_left(_UTILISATIONS, share), 1), len(_UTILISATIONS) - 1)
        low, high = _UTILISATIONS[above - 1], _UTILISATIONS[above]
        part = min((share - low) / (high - low), 1.0)
        waiting, computed = (
            each[above - 1] + part * (each[above] - each[above - 1]) for each in (self.waiting, self.computed)
        )
        return max(0.0, float(waiting)), max(0.0, float(computed))


def build_profile(service: Service, requests: int = 15_000, pods: int = 3) -> Profile:
    """By `simulate_queues`, of so many requests at each utilisation."""
    runs = [
        simulate_queues(poisson_arrivals(share * pods * service.rate, requests), pods, service)
        for share in UTILISATIONS
    ]
    latency_s = np.array([np.nanquantile(run.seconds, QUANTILES) for run in runs])
    return Profile(
        service, latency_s, np.array([run.waiting for run in runs]), np.array([run.computed for run in runs])
    )
