"""The core under both classifiers: images in, classifications out, on an event loop."""

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from client.config import Config
from client.dispatch import Answer, Dispatcher
from client.errors import BadAnswer, BadImage, ClassifierError, ModelNotFound, RequestRefused, ServerError
from client.messages import words_of_model
from client.pool import Pool, Server
from client.results import Classification, Failure, Label, Timing
from client.retry import Deadline
from client.signature import Signature, read_signature
from client.wire import InferReply, InferRequest, Transport, parse_label, serialize_bytes

if TYPE_CHECKING:
    from client.images import Source

Result = Classification | Failure
READERS = 4


class Session:
    """Connections to the servers and what is known of the model. Belongs to one event loop."""

    def __init__(self, config: Config) -> None:
        """Connects when it is first used.

        Raises:
            UsageError: an address that is none, a certificate that cannot be read.
        """
        self.config = config
        self.pool = Pool(config)
        self._dispatcher = Dispatcher(config, self.pool)
        self._signature: Signature | None = None
        self._opening = asyncio.Lock()
        self._in_flight = asyncio.Semaphore(config.concurrency)
        self._readers = ThreadPoolExecutor(max(READERS, os.cpu_count() or 1), thread_name_prefix="classify-read")

    async def signature(self) -> Signature:
        """What the model takes, asked of the server once.

        Raises:
            ModelNotFound, SignatureMismatch: the message lists what the server has.
            ServerError: it cannot be asked.
        """
        async with self._opening:
            if self._signature is None:
                answer = await self._dispatcher.send(self._ask_signature, Deadline(self.config.timeout_s))
                self._signature = answer.value
        return self._signature

    async def wait(self, wait_s: float) -> None:
        """Wait until the server and the model are ready.

        Raises:
            ServerError: why they are not, after `wait_s`.
        """
        deadline = Deadline(wait_s)
        while True:
            try:
                return await self._ready(max(0.05, min(deadline.left_s, 2.0)))
            except ServerError as error:
                if not error.retryable and not isinstance(error, (ModelNotFound,)) and not deadline.left_s:
                    raise
                if deadline.left_s < 0.2:
                    raise
            await asyncio.sleep(0.2)

    async def classify(self, sources: Sequence["Source"]) -> list[Result]:
        """Classify one batch, of at most what the model takes; a bad image fails alone.

        Raises:
            ServerError: no answer from any server.
            UsageError: a source that can be no image.
        """
        signature = await self.signature()
        async with self._in_flight:
            loop = asyncio.get_running_loop()
            loaded = await loop.run_in_executor(self._readers, _load, sources, signature)
            good = [each for each in loaded if isinstance(each, bytes)]
            answered = iter(await self._infer(good, signature) if good else ())
        outcomes = [next(answered) if isinstance(each, bytes) else each for each in loaded]
        return [_result(source, outcome) for source, outcome in zip(sources, outcomes, strict=True)]

    async def batch_size(self) -> int:
        """Images a request holds: what was asked for, or what the model takes."""
        return min(self.config.batch, (await self.signature()).max_batch)

    async def close(self) -> None:
        """Drop the connections; what is in flight fails."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        await self.pool.close()

    async def _ready(self, timeout_s: float) -> None:
        errors = []
        for server in self.pool.servers:
            try:
                return await server.transport.ready(self.config.model_name, self.config.version, timeout_s)
            except ServerError as error:
                errors.append(error)
        raise errors[0]

    async def _ask_signature(self, server: Server, timeout_s: float) -> Signature:
        model, transport, deadline = self.config.model_name, server.transport, Deadline(timeout_s)
        try:
            config = await transport.model_config(model, self.config.version, timeout_s)
        except (ModelNotFound, RequestRefused) as error:
            raise ModelNotFound(
                words_of_model(error.detail), error.host, hint=await _inventory(transport, deadline)
            ) from None
        return self._checked(read_signature(config, transport.host), transport.host)

    def _checked(self, signature: Signature, host: str) -> Signature:
        wanted = self.config.send
        if wanted not in ("auto", signature.kind):
            other = f"--send {signature.kind}, or name another with --model"
            raise RequestRefused(f"it takes {signature.kind}, not {wanted}; {other}", host, self.config.model_name)
        return signature

    async def _infer(self, images: list[bytes], signature: Signature) -> list["Outcome"]:
        """Outcomes in the order of the images; a batch that is refused is halved until the bad image stands alone."""
        try:
            return await self._infer_batch(images, signature)
        except RequestRefused as error:
            if len(images) == 1:
                return [BadImage(words_of_model(error.detail))]
        half = len(images) // 2
        first, second = await asyncio.gather(
            self._infer(images[:half], signature), self._infer(images[half:], signature)
        )
        return first + second

    async def _infer_batch(self, images: list[bytes], signature: Signature) -> list["Outcome"]:
        request = self._request(images, signature)

        async def send(server: Server, timeout_s: float) -> tuple[list[list[Label]], InferReply, float]:
            start = time.perf_counter()
            reply = await server.transport.infer(request, timeout_s)
            elapsed_ms = (time.perf_counter() - start) * 1e3
            return _rows(reply, len(images), server), reply, elapsed_ms

        start = time.perf_counter()
        answer = await self._dispatcher.send(send, Deadline(self.config.timeout_s))
        total_ms = (time.perf_counter() - start) * 1e3
        return [_classification(row, answer, total_ms) for row in answer.value[0]]

    def _request(self, images: list[bytes], signature: Signature) -> InferRequest:
        data = serialize_bytes(images) if signature.kind == "encoded" else b"".join(images)
        return InferRequest(
            model=self.config.model_name,
            version=self.config.version,
            input=signature.input,
            datatype=signature.datatype,
            shape=signature.shape(len(images)),
            data=data,
            output=signature.output,
            class_count=min(self.config.top, signature.classes),
            parameters={"priority": self.config.priority} if self.config.priority else {},
        )


Outcome = Classification | ClassifierError


def _load(sources: Sequence["Source"], signature: Signature) -> list[bytes | BadImage]:
    from client.images import payload

    loaded: list[bytes | BadImage] = []
    for source in sources:
        try:
            loaded.append(payload(source, signature))
        except BadImage as error:
            loaded.append(error)
    return loaded


def _rows(reply: InferReply, images: int, server: Server) -> list[list[Label]]:
    """The classes of every image; refuses an answer that is not one."""
    try:
        labels = [parse_label(text) for text in reply.classes]
        if not labels or len(labels) % images:
            raise ValueError(f"{len(labels)} classes for {images} images")
    except ValueError as error:
        raise BadAnswer(f"unreadable classes: {error}", server.transport.host, reply.model) from None
    count = len(labels) // images
    return [labels[start : start + count] for start in range(0, len(labels), count)]


def _classification(
    row: list[Label], answer: Answer[tuple[list[list[Label]], InferReply, float]], total_ms: float
) -> Classification:
    _, reply, elapsed_ms = answer.value
    timing = Timing(total_ms - elapsed_ms, elapsed_ms, answer.attempts, answer.server.transport.host)
    return Classification(None, reply.model, reply.version, tuple(row), elapsed_ms, timing)


def _result(source: "Source", outcome: Outcome) -> Result:
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    if isinstance(outcome, ClassifierError):
        return Failure(path, outcome)
    return Classification(path, outcome.model, outcome.version, outcome.top, outcome.ms, outcome.timing)


async def _inventory(transport: Transport, deadline: Deadline) -> str:
    """What the server has, for the message about what it has not."""
    try:
        models = await transport.index(max(deadline.left_s, 0.1))
    except ServerError:
        return "see what it serves with `alexnet-classify info`"
    names = [f"{each['name']} (version {each['version']})" for each in models if each.get("state") == "READY"]
    return f"this server has {', '.join(names)}" if names else "this server has no model that is ready"
