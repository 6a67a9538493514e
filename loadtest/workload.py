"""What is sent and when, and what may come back: intended moments, requests drawn from the cases, faults."""

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from alexnet_triton.client.grpc_transport import build_request as build_message
from alexnet_triton.client.http_transport import build_request
from alexnet_triton.client.protocol import InferRequest
from alexnet_triton.common.infer_request import HEADER_LENGTH
from alexnet_triton.loadtest.cases import Case, Target
from alexnet_triton.loadtest.errors import SettingError

Arrivals = Literal["constant", "poisson"]
Shape = Literal["flat", "step", "spike", "day"]
MOST_PER_S = 100_000.0
MOST_REQUESTS = 50_000_000
MOST_USERS = 10_000
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


@dataclass(frozen=True)
class Users:
    """The closed loop: each user sends, waits for the answer, thinks, and sends again."""

    count: int
    duration_s: float
    warmup_s: float = 0.0
    think_s: float = 0.0

    def __post_init__(self) -> None:
        """Raises SettingError for what cannot be."""
        if not 1 <= self.count <= MOST_USERS:
            raise SettingError(f"--users {self.count}: give 1 to {MOST_USERS:,}")
        check_times(self.duration_s, self.warmup_s)


def check_times(duration_s: float, warmup_s: float) -> None:
    """Raises SettingError for times that cannot be."""
    if not 0 < duration_s <= 7 * 86_400 or not 0 <= warmup_s <= 86_400:
        raise SettingError(f"--duration {duration_s:g} s, --warmup {warmup_s:g} s: give times of at most a week")


def rate_at(plan: Plan, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Requests a second at moments of the measured time; during the warm-up, the rate that it starts with."""
    fraction = np.clip(seconds / plan.duration_s, 0.0, 1.0)
    if plan.shape == "step":
        factor = np.minimum(np.floor(fraction * STEPS) + 1, STEPS) / STEPS
    elif plan.shape == "spike":
        factor = np.where((fraction >= 0.45) & (fraction < 0.55), SPIKE, 1.0)
    elif plan.shape == "day":
        factor = 0.6 - 0.4 * np.cos(2 * math.pi * fraction)
    else:
        factor = np.ones_like(fraction)
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


@dataclass(slots=True, eq=False)
class Request:
    """One request. Times are `perf_counter` seconds; `intended_s` is when it should have been sent."""

    data: bytes
    cases: Sequence[Case]
    priority: int
    intended_s: float = 0.0
    sent_s: float = 0.0
    finished: bool = False


@dataclass(frozen=True)
class Workload:
    """How requests are composed.

    Attributes:
        batch: images a request.
        priorities: Triton's priority levels and their weights; 0 leaves the model's default.
    """

    batch: int = 1
    priorities: Mapping[int, float] = field(default_factory=lambda: {0: 1.0})
    seed: int = 0


class RequestSampler:
    """Draws requests: every image once in random order, then all of them again.

    For a recorded request's length it draws the images of the nearest size, which take turns where several have it.
    """

    def __init__(self, target: Target, cases: Sequence[Case], workload: Workload) -> None:
        """Raises SettingError where the model does not take such batches."""
        largest = target.signature.max_batch
        if not 1 <= workload.batch <= largest:
            raise SettingError(
                f"--batch {workload.batch}: model {target.model!r} takes 1 to {largest} images a request"
            )
        self.target, self._cases, self._workload = target, list(cases), workload
        self._random = random.Random(workload.seed)
        self._rest: list[Case] = []
        self._by_size: dict[int, list[Case]] = {}
        for case in self._cases:
            self._by_size.setdefault(len(case.tensor), []).append(case)
        self._sizes = sorted(self._by_size)
        self._levels = list(workload.priorities)
        self._weights = list(workload.priorities.values())
        self._encode = _encoder(target)

    def next(self, length: int | None = None) -> Request:
        """Draw the next request; `length` is a recorded one's, in bytes."""
        return self.encode(*self.draw(length))

    def encode(self, cases: Sequence[Case], priority: int = 0) -> Request:
        """A request for these images."""
        return Request(self._encode(infer_request(self.target, cases, priority)), cases, priority)

    def draw(self, length: int | None = None) -> tuple[list[Case], int]:
        """The images of the next request, and its priority; `length` as of `next`."""
        batch = self._workload.batch
        cases = [self._next_case() if length is None else self._nearest(length / batch) for _ in range(batch)]
        priority = self._levels[0] if len(self._levels) == 1 else self._random.choices(self._levels, self._weights)[0]
        return cases, priority

    def _next_case(self) -> Case:
        if not self._rest:
            self._rest = self._random.sample(self._cases, len(self._cases))
        return self._rest.pop()

    def _nearest(self, size: float) -> Case:
        above = bisect_left(self._sizes, size)
        nearest = min(self._sizes[max(0, above - 1) : above + 1], key=lambda each: abs(each - size))
        cases = self._by_size[nearest]
        cases.append(cases.pop(0))
        return cases[-1]


def infer_request(target: Target, cases: Sequence[Case], priority: int = 0) -> InferRequest:
    """A request for the most probable class of each case."""
    signature = target.signature
    return InferRequest(
        model=target.model,
        version=target.config.version,
        input=signature.input,
        datatype=signature.datatype,
        shape=signature.shape(len(cases)),
        data=cases[0].tensor if len(cases) == 1 else b"".join(case.tensor for case in cases),
        output=signature.output,
        class_count=1,
        parameters={"priority": priority} if priority else {},
    )


def _encoder(target: Target) -> Callable[[InferRequest], bytes]:
    """Makes gRPC messages, or whole HTTP/1.1 messages: head, JSON header and binary part."""
    if target.address.is_grpc:
        return lambda request: build_message(request).SerializeToString()
    address, version = target.address, target.config.version
    model = quote(target.model, safe="") + (f"/versions/{quote(version, safe='')}" if version else "")
    headers = {"Host": address.authority, "Content-Type": "application/octet-stream", **target.config.headers}
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join((f"POST {address.prefix}/v2/models/{model}/infer HTTP/1.1", *lines, HEADER_LENGTH)).encode()

    def encode(request: InferRequest) -> bytes:
        header, data = build_request(request)
        lengths = b": %d\r\nContent-Length: %d\r\n\r\n" % (len(header), len(header) + len(data))
        return b"".join((head, lengths, header, data))

    return encode


class RequestFault(NamedTuple):
    """Why a request has no right answer: the failure's name, and the server's words."""

    name: str
    detail: str = ""


Answer = Sequence[str] | RequestFault  # the classes, each as Triton's `value:index:label`
Done = Callable[[Request, Answer], None]
TIMEOUT = "timeout"
WRONG = "wrong answer"


def find_fault(cases: Sequence[Case], answer: Answer) -> RequestFault | None:
    """What is wrong with an answer; None when each image has the class that it should have."""
    if isinstance(answer, RequestFault):
        return answer
    if len(answer) != len(cases):
        return RequestFault("unreadable answer", f"{len(answer)} classes for {len(cases)} images")
    for case, text in zip(cases, answer, strict=True):
        try:
            index = int(text.split(":", 2)[1])
        except (IndexError, ValueError):
            return RequestFault("unreadable answer", f"{text!r} is no class")
        if index not in case.right:
            right = " or ".join(map(str, sorted(case.right)))
            return RequestFault(WRONG, f"{case.name} is class {right}, the answer {text}")
    return None
