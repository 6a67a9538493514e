"""What the suite sends, and what becomes of it: single raw requests, and callers that check every answer."""

import asyncio
import http.client
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from alexnet_triton.common.infer_request import HEADER_LENGTH, build_header, bytes_tensor, infer_path

RIGHT, REFUSED, WRONG, CUT, SILENT = "answered rightly", "refused", "wrong answer", "cut", "no answer"
TOLERANCE = 0.02  # between probabilities: INT8 in batches of different sizes
PAUSE_S = 0.05  # after a refusal or a cut, before the caller asks again
PATH = infer_path("classify")
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
BUSY = ("timeout expired", "maximum queue size")  # what Triton says over gRPC when it refuses for want of room
Outcome = str
CUT_REASONS: Counter[str] = Counter()  # of the class that is being run


@dataclass(frozen=True)
class Door:
    """A way to the server: directly, or through the gateway with a caller's key."""

    name: str
    http_address: str
    grpc_address: str
    headers: Mapping[str, str] = field(default_factory=dict)
    certificate: Path | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.http_address}"

    @property
    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=str(self.certificate)) if self.certificate else None

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [(name.lower(), value) for name, value in self.headers.items()]

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """An HTTP connection on which nothing has been sent."""
        if self.certificate:
            return http.client.HTTPSConnection(self.http_address, timeout=timeout_s, context=self.tls)
        return http.client.HTTPConnection(self.http_address, timeout=timeout_s)

    def channel(self) -> grpc.Channel:
        """A gRPC channel."""
        if self.certificate:
            return grpc.secure_channel(self.grpc_address, grpc.ssl_channel_credentials(self.certificate.read_bytes()))
        return grpc.insecure_channel(self.grpc_address)

    def aio_channel(self) -> grpc.aio.Channel:
        """A gRPC channel of the running event loop."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.certificate:
            credentials = grpc.ssl_channel_credentials(self.certificate.read_bytes())
            return grpc.aio.secure_channel(self.grpc_address, credentials, options)
        return grpc.aio.insecure_channel(self.grpc_address, options)


@dataclass(frozen=True)
class Question:
    """A request for some of the corpus' images: its places, and its form in both protocols."""

    places: Sequence[int]
    body: bytes
    headers: Mapping[str, str]
    message: bytes


@dataclass(frozen=True)
class Corpus:
    """Images and the answers that the undisturbed server gave to each alone, float [n, classes]."""

    images: Sequence[bytes]
    answers: np.ndarray

    def question(self, places: Sequence[int], **parameters: int) -> Question:
        """A request for the images at these places, with Triton's request parameters."""
        images = [self.images[place % len(self.images)] for place in places]
        body, headers = infer_request(images, parameters)
        message = grpc_request(images, parameters).SerializeToString()
        return Question([place % len(self.images) for place in places], body, headers, message)

    def judge(self, question: Question, probabilities: np.ndarray) -> Outcome:
        """RIGHT or WRONG. `probabilities` of all images of the question, flat or by rows."""
        expected = self.answers[list(question.places)]
        if probabilities.size != expected.size:
            return WRONG
        return RIGHT if np.abs(probabilities.reshape(expected.shape) - expected).max() <= TOLERANCE else WRONG

    def judge_json(self, question: Question, answer: bytes) -> Outcome:
        """The same of an answer over HTTP."""
        try:
            return self.judge(question, np.array(json.loads(answer)["outputs"][0]["data"], float))
        except (ValueError, KeyError, IndexError, TypeError):
            return WRONG


def infer_request(
    images: Sequence[bytes], parameters: Mapping[str, object] | None = None
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of Triton's binary HTTP form, asking for all probabilities."""
    data = bytes_tensor(images)
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": [len(images), 1]}
    head = build_header(tensor, len(data), {"name": "probabilities"}, parameters)
    return head + data, {HEADER_LENGTH: str(len(head))}


def grpc_request(images: Sequence[bytes], parameters: Mapping[str, int] | None = None) -> service_pb2.ModelInferRequest:
    """The same over gRPC."""
    request = service_pb2.ModelInferRequest(model_name="classify")
    request.inputs.add(name="encoded", datatype="BYTES", shape=[len(images), 1])
    request.outputs.add(name="probabilities")
    request.raw_input_contents.append(bytes_tensor(images))
    for name, value in (parameters or {}).items():
        request.parameters[name].int64_param = value
    return request


# ---- single raw requests


def ask(
    door: Door, body: bytes, headers: Mapping[str, str], path: str = PATH, method: str = "POST", timeout_s: float = 20.0
) -> tuple[Outcome, bytes]:
    """Send one request; returns its status ("HTTP 400"), CUT or SILENT, and the answer's body."""
    connection = door.connection(timeout_s)
    try:
        connection.request(method, path, body, {**door.headers, **headers})
        response = connection.getresponse()
        return f"HTTP {response.status}", response.read()
    except TimeoutError:
        return SILENT, b""
    except (OSError, http.client.HTTPException, ValueError):
        return CUT, b""
    finally:
        connection.close()


def ask_grpc(
    channel: grpc.Channel, door: Door, message: bytes, method: str = GRPC_INFER, timeout_s: float = 20.0
) -> tuple[Outcome, bytes]:
    """Send one message, whatever its bytes are; returns "gRPC OK" or its error, CUT or SILENT, and the answer."""
    call = channel.unary_unary(method, None, None)
    try:
        return "gRPC OK", call(message, timeout=timeout_s, metadata=door.metadata)
    except grpc.RpcError as error:
        return _name_grpc_error(error), b""


def _name_grpc_error(error: grpc.RpcError) -> Outcome:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return SILENT
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED or any(words in details for words in BUSY):
        return REFUSED
    if code is grpc.StatusCode.UNAVAILABLE and not _is_restricted(details):
        CUT_REASONS[details] += 1
        return CUT
    return f"gRPC {code.name}"


def _is_restricted(details: str) -> bool:
    return "restricted" in details


# ---- callers that check every answer


class Tally:
    """What became of requests, by name."""

    def __init__(self) -> None:
        self.counts: Counter[Outcome] = Counter()
        self.slowest_s = 0.0  # of the requests that were answered rightly

    def add(self, outcome: Outcome, seconds: float = 0.0) -> None:
        """Count an outcome."""
        self.counts[outcome] += 1
        if outcome == RIGHT:
            self.slowest_s = max(self.slowest_s, seconds)

    @property
    def total(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in self.counts.most_common()) or "nothing sent"

    def problems(self, *expected: Outcome) -> list[str]:
        """Outcomes other than right answers, refusals and those that the fault explains."""
        fine = {RIGHT, REFUSED, *expected}
        return [f"{count} requests: {name}" for name, count in self.counts.items() if name not in fine]


class HttpCallers:
    """Sends questions over HTTP, from many tasks of one event loop."""

    def __init__(self, corpus: Corpus, door: Door, timeout_s: float, keep_alive: bool = True) -> None:
        self._corpus, self._door = corpus, door
        self._headers = {**door.headers, **({} if keep_alive else {"Connection": "close"})}
        self._timeout = aiohttp.ClientTimeout(timeout_s)

    async def __aenter__(self) -> "HttpCallers":
        connector = aiohttp.TCPConnector(limit=0, ssl=self._door.tls or True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, question: Question) -> Outcome:
        """Send one, and judge the answer."""
        headers = {**self._headers, **question.headers, "Content-Type": "application/octet-stream"}
        try:
            async with self._session.post(self._door.url + PATH, data=question.body, headers=headers) as response:
                answer = await response.read()
        except asyncio.TimeoutError:
            return SILENT
        except (aiohttp.ClientError, OSError) as error:
            CUT_REASONS[repr(error)] += 1
            return CUT
        if response.status in (429, 503):
            return REFUSED
        if response.status != 200:
            return f"HTTP {response.status}"
        return self._corpus.judge_json(question, answer)


class GrpcCallers:
    """Sends questions over gRPC, from many tasks of one event loop."""

    def __init__(self, corpus: Corpus, door: Door, timeout_s: float, channels: int = 4) -> None:
        self._corpus, self._door, self._timeout_s, self._count = corpus, door, timeout_s, channels
        self._sent = 0

    async def __aenter__(self) -> "GrpcCallers":
        self._channels = [self._door.aio_channel() for _ in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def send(self, question: Question) -> Outcome:
        """Send one, and judge the answer."""
        self._sent += 1
        call = self._channels[self._sent % self._count].unary_unary(GRPC_INFER, None, None)
        try:
            answer = await call(question.message, timeout=self._timeout_s, metadata=self._door.metadata)
        except grpc.RpcError as error:
            return _name_grpc_error(error)
        raw = service_pb2.ModelInferResponse.FromString(answer).raw_output_contents
        return self._corpus.judge(question, np.frombuffer(raw[0], np.float32)) if raw else WRONG


Callers = HttpCallers | GrpcCallers


async def keep_asking(
    callers: Callers, ask_for: Callable[[int], Question], count: int, over: Callable[[], bool], tally: Tally
) -> None:
    """Have `count` callers ask, wait for the answer and ask again, until `over`. `ask_for` takes a running number."""
    number = 0

    async def one() -> None:
        nonlocal number
        while not over():
            number += 1
            started = time.perf_counter()
            outcome = await callers.send(ask_for(number))
            tally.add(outcome, time.perf_counter() - started)
            if outcome not in (RIGHT, WRONG):
                await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(one() for _ in range(count)))


async def pour(
    callers: Callers, ask_for: Callable[[int], Question], rate_per_s: float, over: Callable[[], bool], tally: Tally
) -> None:
    """Send at a rate until `over`, whatever is answered; then wait for the answers."""

    async def one(number: int) -> None:
        started = time.perf_counter()
        outcome = await callers.send(ask_for(number))
        tally.add(outcome, time.perf_counter() - started)

    tasks: list[asyncio.Task[None]] = []
    started = time.perf_counter()
    while not over():
        while len(tasks) < rate_per_s * (time.perf_counter() - started):
            tasks.append(asyncio.create_task(one(len(tasks))))
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks)


async def ask_at_once(callers: Callers, questions: Sequence[Question], tally: Tally) -> None:
    """Send all without waiting for any, and wait for all answers."""
    for outcome in await asyncio.gather(*(callers.send(question) for question in questions)):
        tally.add(outcome)


def after(seconds: float) -> Callable[[], bool]:
    """Says whether so many seconds have passed since this call."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


@contextmanager
def background(make: Callable[[Callable[[], bool], Tally], Coroutine[object, object, None]]) -> Iterator[Tally]:
    """Run a load in a thread during the block. `make` takes whether it is over, and the tally; it gives a coroutine."""
    stopped, tally = threading.Event(), Tally()
    thread = threading.Thread(target=lambda: asyncio.run(make(stopped.is_set, tally)))
    thread.start()
    try:
        yield tally
    finally:
        stopped.set()
        thread.join()
