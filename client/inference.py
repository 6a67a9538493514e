"""Images in batches, and one batch through the model."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from alexnet_triton.client.config import Config
from alexnet_triton.client.errors import BadAnswer, ClassifierError
from alexnet_triton.client.protocol import Classification, InferReply, InferRequest, Signature, Timing, parse_label
from alexnet_triton.client.servers import Deadline, Dispatcher, Endpoint
from alexnet_triton.common.infer_request import bytes_tensor

T = TypeVar("T")
Outcome = Classification | ClassifierError


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
        raise BadAnswer(f"unreadable classes: {error}", host, request.model) from None
    if reply.model != request.model or len(labels) != images * request.class_count:
        what = f"{len(labels)} classes of {reply.model!r}"
        raise BadAnswer(f"{what} for {images} images with {request.class_count} each", host, request.model)
    rows = (labels[start : start + request.class_count] for start in range(0, len(labels), request.class_count))
    return [Classification(None, reply.model, reply.version, tuple(row), ms) for row in rows]
