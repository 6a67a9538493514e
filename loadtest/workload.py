"""What is sent: requests drawn from the cases, ready for the wire."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from client.grpc_transport import build_request as build_message
from client.http_transport import HEADER_LENGTH, build_request
from client.wire import InferRequest
from loadtest.cases import Case, Target
from loadtest.errors import SettingError

_LENGTH_NAME = HEADER_LENGTH.encode()


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


class Deck:
    """Deals requests: every image once, in random order, then all anew."""

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
        self._levels = list(workload.priorities)
        self._weights = list(workload.priorities.values())
        self._encode = _encode_grpc if target.address.is_grpc else HttpEncoder(target).encode

    def deal(self) -> Request:
        """The next request."""
        return self.encode(*self.draw())

    def encode(self, cases: Sequence[Case], priority: int = 0) -> Request:
        """A request for these images."""
        return Request(self._encode(infer_request(self.target, cases, priority)), cases, priority)

    def draw(self) -> tuple[list[Case], int]:
        """The images of the next request, and its priority."""
        cases = [self._next() for _ in range(self._workload.batch)]
        priority = self._levels[0] if len(self._levels) == 1 else self._random.choices(self._levels, self._weights)[0]
        return cases, priority

    def _next(self) -> Case:
        if not self._rest:
            self._rest = self._random.sample(self._cases, len(self._cases))
        return self._rest.pop()


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


def _encode_grpc(request: InferRequest) -> bytes:
    return build_message(request).SerializeToString()


class HttpEncoder:
    """Whole HTTP/1.1 messages."""

    def __init__(self, target: Target) -> None:
        address, version = target.address, target.config.version
        model = quote(target.model, safe="") + (f"/versions/{quote(version, safe='')}" if version else "")
        path = f"{address.prefix}/v2/models/{model}/infer"
        headers = {"Host": address.authority, "Content-Type": "application/octet-stream", **target.config.headers}
        lines = (f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()))
        self._head = "\r\n".join(lines).encode()

    def encode(self, request: InferRequest) -> bytes:
        """Head, JSON header and binary part."""
        header, data = build_request(request)
        lengths = b"\r\n%s: %d\r\nContent-Length: %d\r\n\r\n"
        return b"".join((self._head, lengths % (_LENGTH_NAME, len(header), len(header) + len(data)), header, data))
