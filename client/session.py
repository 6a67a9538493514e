"""The core under both classifiers: finds the model, sends it batches, and isolates bad images."""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from alexnet_triton.client import errors
from alexnet_triton.client.config import AUTO_BATCH, Address, Config
from alexnet_triton.client.images import RemoteImage, Source, blank, path_of, payload
from alexnet_triton.client.protocol import (
    Classification,
    Failure,
    InferReply,
    InferRequest,
    Json,
    Result,
    Signature,
    Timing,
    Transport,
    parse_label,
    read_signature,
)
from alexnet_triton.client.servers import Deadline, Dispatcher, Endpoint, Pool
from alexnet_triton.common.infer_request import bytes_tensor
from alexnet_triton.common.provenance import usable_cores

POLL_S = 0.1
POLL_TIMEOUT_S = 2.0
READERS = 4
Fetched = Sequence[Source | errors.BadImage]
T = TypeVar("T")
Outcome = Classification | errors.ClassifierError


def batches(items: Iterable[T], size: int, single: int = 0) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter; before them the first `single` items, one a list."""
    iterator = iter(items)
    for item in islice(iterator, single):
        yield [item]
    while batch := list(islice(iterator, size)):
        yield batch


class Inference:
    """Sends batches to the model whose signature is known."""

    def __init__(self, config: Config, dispatcher: Dispatcher, signature: Signature) -> None:
        self._config, self._dispatcher = config, dispatcher
        self.signature = signature
        self.proven = False  # whether the model has classified anything

    async def run(self, images: list[bytes], read_ms: float = 0.0, top: int = 0) -> list[Outcome]:
        """Classify images in the form that the model takes; `top` overrides the configured number of classes.

        Raises:
            ServerError: they were not classified.
        """
        start = time.perf_counter()
        request = self._request(images, top or self._config.top)
        answers, endpoint, attempts = await self._dispatcher.send(
            lambda endpoint, timeout_s: _attempt(request, endpoint, timeout_s), Deadline(self._config.timeout_s)
        )
        self.proven = True
        total_ms, request_ms = (time.perf_counter() - start) * 1e3, answers[0].ms
        wait_ms = max(0.0, total_ms - request_ms)
        timing = Timing(read_ms, wait_ms, request_ms, attempts, len(images), endpoint.transport.host)
        return [replace(each, timing=timing) for each in answers]

    def _request(self, images: list[bytes], top: int) -> InferRequest:
        return InferRequest(
            model=self._config.model_name,
            version=self._config.version,
            input=self.signature.input,
            datatype=self.signature.datatype,
            shape=self.signature.shape(len(images)),
            data=bytes_tensor(images) if self.signature.kind == "encoded" else b"".join(images),
            output=self.signature.output,
            class_count=min(top, self.signature.classes),
            parameters={"priority": self._config.priority} if self._config.priority else {},
        )


async def _attempt(request: InferRequest, endpoint: Endpoint, timeout_s: float) -> list[Classification]:
    start = time.perf_counter()
    reply = await endpoint.transport.infer(request, timeout_s)
    return _read(reply, request, endpoint.transport.host, (time.perf_counter() - start) * 1e3)


def _read(reply: InferReply, request: InferRequest, host: str, ms: float) -> list[Classification]:
    """Every image's classes; refuses an answer that does not fit the request."""
    images = request.shape[0]
    try:
        labels = [parse_label(text) for text in reply.classes]
    except ValueError as error:
        raise errors.BadAnswer(f"unreadable classes: {error}", host, request.model) from None
    if reply.model != request.model or len(labels) != images * request.class_count:
        what = f"{len(labels)} classes of {reply.model!r}"
        raise errors.BadAnswer(f"{what} for {images} images with {request.class_count} each", host, request.model)
    rows = (labels[start : start + request.class_count] for start in range(0, len(labels), request.class_count))
    return [Classification(None, reply.model, reply.version, tuple(row), ms) for row in rows]


class Session:
    """Connections to the servers and what is known of the model. Belongs to one event loop."""

    def __init__(self, config: Config) -> None:
        """Connects when it is first used.

        Raises:
            UsageError: a wrong address, or a certificate that cannot be read.
        """
        self.config = config
        self.pool = Pool(config, connect)
        self.dispatcher = Dispatcher(config, self.pool)
        self._inference: Inference | None = None
        self._opening = asyncio.Lock()
        self._in_flight = asyncio.Semaphore(config.concurrency)
        self._readers = ThreadPoolExecutor(max(READERS, usable_cores()), thread_name_prefix="classify-read")

    async def wait(self, wait_s: float) -> None:
        """Wait until one of the servers has the model ready.

        Raises:
            ServerError: why the first server has not, after `wait_s`.
        """
        deadline = Deadline(wait_s)
        while True:
            failures = await asyncio.gather(*(self._ask_ready(endpoint, deadline) for endpoint in self.pool.endpoints))
            if None in failures:
                return
            if deadline.left_s < POLL_S:
                raise next(failure for failure in failures if failure)
            await asyncio.sleep(POLL_S)

    async def inference(self) -> Inference:
        """The model; the server is asked for it once.

        Raises:
            ModelNotFound, SignatureMismatch: the message lists what the server has.
            ServerError: the server cannot be asked.
        """
        async with self._opening:
            if self._inference is None:
                deadline = Deadline(self.config.timeout_s)
                signature, _, _ = await self.dispatcher.send(
                    lambda endpoint, timeout_s: _find_model(endpoint.transport, self.config, timeout_s), deadline
                )
                self._inference = Inference(self.config, self.dispatcher, signature)
        return self._inference

    async def batching(self) -> tuple[int, int]:
        """Images a request holds, at most what the model takes; and how many are sent singly before."""
        size = min(self.config.batch or AUTO_BATCH, (await self.inference()).signature.max_batch)
        return size, 0 if self.config.batch else self.config.concurrency

    async def classify(self, sources: Sequence[Source]) -> list[Result]:
        """Classify one batch, of at most what the model takes. A bad image gives a Failure, the others are answered.

        Raises:
            ServerError: no answer from any server.
            UsageError: a source that can be no image.
        """
        inference, start = await self.inference(), time.perf_counter()
        if any(isinstance(source, RemoteImage) for source in sources):
            # Here, not in a thread: an address that is slow holds up neither the readers nor the requests in flight.
            fetched: Fetched = await asyncio.gather(*map(_fetched, sources))
        else:
            fetched = sources
        fetch_ms = (time.perf_counter() - start) * 1e3
        async with self._in_flight:
            loop = asyncio.get_running_loop()
            loaded, load_ms = await loop.run_in_executor(self._readers, _load, fetched, inference.signature)
            read_ms = fetch_ms + load_ms
            good = [each for each in loaded if isinstance(each, bytes)]
            answered = iter(await self._classify(inference, good, read_ms) if good else ())
        outcomes = [next(answered) if isinstance(each, bytes) else each for each in loaded]
        return [_result(source, outcome) for source, outcome in zip(sources, outcomes, strict=True)]

    async def statistics(self) -> Sequence[Json]:
        """The counters of the first healthy server.

        Raises:
            ServerError: it cannot be asked.
        """
        deadline = Deadline(self.config.timeout_s)
        asked = self.dispatcher.send(lambda endpoint, timeout_s: endpoint.transport.statistics(timeout_s), deadline)
        return (await asked)[0]

    async def close(self) -> None:
        """Drop the connections; what is in flight fails."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        await self.pool.close()

    async def _ask_ready(self, endpoint: Endpoint, deadline: Deadline) -> errors.ServerError | None:
        timeout_s = max(0.05, min(deadline.left_s, POLL_TIMEOUT_S))
        try:
            await endpoint.transport.ready(self.config.model_name, self.config.version, timeout_s)
        except errors.ServerError as error:
            return error
        return None

    async def _classify(self, inference: Inference, images: list[bytes], read_ms: float) -> list[Outcome]:
        """Outcomes in the order of the images. A batch that fails is halved until the bad image stands alone."""
        try:
            return await inference.run(images, read_ms)
        except (errors.RequestRefused, errors.ServerFault, errors.BadAnswer) as error:
            if len(images) == 1:
                return [await self._blame(inference, error)]
        half = len(images) // 2
        halves = (self._classify(inference, each, read_ms) for each in (images[:half], images[half:]))
        first, second = await asyncio.gather(*halves)
        return first + second

    async def _blame(self, inference: Inference, error: errors.ServerError) -> errors.ClassifierError:
        """An image that fails is bad if the model classifies a blank one; else the server is at fault.

        Raises:
            ServerError: the server cannot classify anything.
        """
        refused = isinstance(error, errors.RequestRefused)
        if not (refused and inference.proven):
            await inference.run([blank(inference.signature)])
        return errors.BadImage(errors.model_message(error.detail)) if refused else error


def connect(address: Address, config: Config) -> Transport:
    """A transport for the address's scheme; only that scheme's library is loaded, which takes a while."""
    if address.is_grpc:
        from alexnet_triton.client.grpc_transport import GrpcTransport

        return GrpcTransport(address, config)
    from alexnet_triton.client.http_transport import HttpTransport

    return HttpTransport(address, config)


async def list_models(transport: Transport, timeout_s: float) -> Sequence[Json]:
    """`name`, `version` and `state` of the server's models; only the ready ones if the index is closed.

    Raises:
        ServerError: it cannot be asked.
    """
    try:
        return await transport.index(timeout_s)
    except errors.ServerError:  # this project's own server closes the API of repositories
        return [{**each, "state": "READY"} for each in await transport.statistics(timeout_s)]


async def _find_model(transport: Transport, config: Config, timeout_s: float) -> Signature:
    """Inputs and outputs of the configured model.

    Raises:
        ModelNotFound, SignatureMismatch: the message lists what the server has.
        ServerError: it cannot be asked.
    """
    deadline = Deadline(timeout_s)
    try:
        described = await transport.model_config(config.model_name, config.version, timeout_s)
        signature = read_signature(described, transport.host)
    except (errors.ModelNotFound, errors.RequestRefused) as error:
        hint = await _inventory(transport, deadline)
        raise errors.ModelNotFound(errors.model_message(error.detail), error.host, hint=hint) from None
    except errors.SignatureMismatch as error:
        hint = f"{error.hint}; {await _inventory(transport, deadline)}"
        raise errors.SignatureMismatch(error.detail, error.host, error.model, hint) from None
    if config.send not in ("auto", signature.kind):
        detail = f"it takes {signature.kind}, not {config.send}"
        hint = f"use --send {signature.kind}, or name another with --model"
        raise errors.SignatureMismatch(detail, transport.host, config.model_name, hint)
    return signature


async def _inventory(transport: Transport, deadline: Deadline) -> str:
    """The models that the server has, for the message about one that it has not."""
    try:
        models = await list_models(transport, max(deadline.left_s, 0.1))
    except errors.ServerError:
        return "see what it serves with `alexnet-classify info`"
    names = [f"{each['name']} (version {each['version']})" for each in models if each.get("state") == "READY"]
    return f"this server has {', '.join(names)}" if names else "this server has no model that is ready"


async def _fetched(source: Source) -> Source | errors.BadImage:
    """The bytes of an image at an address, or why there are none; any other source as it is."""
    if not isinstance(source, RemoteImage):
        return source
    try:
        return await source.fetch()
    except errors.BadImage as error:
        return error


def _load(sources: Fetched, signature: Signature) -> tuple[list[bytes | errors.BadImage], float]:
    """The images' bytes as the model takes them, and the milliseconds that took."""
    start, loaded = time.perf_counter(), list[bytes | errors.BadImage]()
    for source in sources:
        try:
            loaded.append(source if isinstance(source, errors.BadImage) else payload(source, signature))
        except errors.BadImage as error:
            loaded.append(error)
        except MemoryError:
            raise errors.UsageError("out of memory: lower --concurrency or --batch") from None
    return loaded, (time.perf_counter() - start) * 1e3


def _result(source: Source, outcome: Outcome) -> Result:
    path = path_of(source)
    if isinstance(outcome, errors.ClassifierError):
        return Failure(path, outcome)
    return Classification(path, outcome.model, outcome.version, outcome.top, outcome.ms, outcome.timing)
