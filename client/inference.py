"""One batch of images through the model."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, TypeVar

from alexnet_triton.client.config import Config
from alexnet_triton.client.errors import BadAnswer, ClassifierError, ModelNotFound, RequestRefused
from alexnet_triton.client.protocol import (
    Classification,
    InferReply,
    InferRequest,
    Label,
    SharedMemory,
    Signature,
    Timing,
    parse_label,
    serialize_bytes,
)
from alexnet_triton.client.servers import Deadline, Dispatcher, ServerState
from alexnet_triton.client.shm import Slots

# WAS alexnet_triton.client.inference: Bounded look-ahead with results in order.


T = TypeVar("T")


class LookAhead(Generic[T]):
    """Started work in the order it was started, at most `limit` at a time."""

    def __init__(self, limit: int) -> None:
        self._limit, self._started = limit, deque[T]()

    def add(self, work: T) -> Iterator[T]:
        """Take one more in; gives the oldest when there are too many."""
        self._started.append(work)
        while len(self._started) > self._limit:
            yield self._started.popleft()

    def rest(self) -> Iterator[T]:
        """Give out what is left, the oldest first."""
        while self._started:
            yield self._started.popleft()


def batches(items: Iterable[T], size: int, alone: int = 0) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter; the first `alone` items each in a list of its own."""
    iterator = iter(items)
    for item in islice(iterator, alone):
        yield [item]
    while batch := list(islice(iterator, size)):
        yield batch


Outcome = Classification | ClassifierError
ENCODED_SLOT_BYTES = 1 << 20  # a larger image goes the ordinary way


@dataclass(frozen=True, slots=True)
class _Reply:
    rows: list[list[Label]]
    model: str
    version: str
    elapsed_ms: float


class Inference:
    """Sends batches to the model whose signature is known."""

    def __init__(self, config: Config, dispatcher: Dispatcher, signature: Signature) -> None:
        """Must be made in the event loop that will use it.

        Raises:
            UsageError: no room for shared memory.
        """
        self._config, self._dispatcher = config, dispatcher
        self.signature = signature
        self.proven = False  # whether the model has classified anything
        self._slots = Slots(config.concurrency, self._slot_bytes()) if config.shm else None

    async def run(self, images: list[bytes], read_ms: float = 0.0, top: int = 0) -> list[Outcome]:
        """Classify images in the model's own form; `top` overrides the configured number of classes.

        Raises:
            ServerError: they were not classified.
        """
        start = time.perf_counter()
        async with AsyncExitStack() as stack:
            raw = self._serialize(images)
            data = await stack.enter_async_context(self._slots.hold(raw)) if self._slots else raw
            request = self._request(data, len(images), top or self._config.top)
            answer = await self._dispatcher.send(lambda *to: self._send(request, *to), Deadline(self._config.timeout_s))
        self.proven = True
        reply, total_ms = answer.value, (time.perf_counter() - start) * 1e3
        wait_ms = max(0.0, total_ms - reply.elapsed_ms)
        host = answer.server.transport.host
        timing = Timing(read_ms, wait_ms, reply.elapsed_ms, answer.attempts, len(images), host)
        whole = Classification(None, reply.model, reply.version, (), reply.elapsed_ms, timing)
        return [replace(whole, top=tuple(row)) for row in reply.rows]

    async def close(self) -> None:
        """Give the shared memory back."""
        if self._slots is not None:
            await self._slots.close()

    async def _send(self, request: InferRequest, server: ServerState, timeout_s: float) -> _Reply:
        start = time.perf_counter()
        try:
            if self._slots is not None and isinstance(request.data, SharedMemory):
                await self._slots.register(server, timeout_s)
            reply = await server.transport.infer(request, timeout_s)
        except (RequestRefused, ModelNotFound) as error:
            raise (self._slots.lost(server, error) if self._slots else error) from None
        rows = _rows(reply, request, server)
        return _Reply(rows, reply.model, reply.version, (time.perf_counter() - start) * 1e3)

    def _serialize(self, images: list[bytes]) -> bytes:
        return serialize_bytes(images) if self.signature.kind == "encoded" else b"".join(images)

    def _request(self, data: bytes | SharedMemory, images: int, top: int) -> InferRequest:
        return InferRequest(
            model=self._config.model_name,
            version=self._config.version,
            input=self.signature.input,
            datatype=self.signature.datatype,
            shape=self.signature.shape(images),
            data=data,
            output=self.signature.output,
            class_count=min(top, self.signature.classes),
            parameters={"priority": self._config.priority} if self._config.priority else {},
        )

    def _slot_bytes(self) -> int:
        size, batch = self.signature.size, min(self._config.largest_batch, self.signature.max_batch)
        return batch * (size * size * 3 if size else ENCODED_SLOT_BYTES)


def _rows(reply: InferReply, request: InferRequest, server: ServerState) -> list[list[Label]]:
    """The classes of every image; refuses an answer that does not fit the question."""
    images, host = request.shape[0], server.transport.host
    try:
        labels = [parse_label(text) for text in reply.classes]
    except ValueError as error:
        raise BadAnswer(f"unreadable classes: {error}", host, request.model) from None
    if reply.model != request.model or len(labels) != images * request.class_count:
        what = f"{len(labels)} classes of {reply.model!r}"
        raise BadAnswer(f"{what} for {images} images with {request.class_count} each", host, request.model)
    starts = range(0, len(labels), request.class_count)
    return [labels[start : start + request.class_count] for start in starts]
