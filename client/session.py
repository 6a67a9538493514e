"""The core under both classifiers: images in, classifications out, on an event loop."""

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from alexnet_triton.client.config import Config
from alexnet_triton.client.errors import (
    BadAnswer,
    BadImage,
    ClassifierError,
    ModelNotFound,
    RequestRefused,
    ServerError,
    ServerFault,
    SignatureMismatch,
    UsageError,
    words_of_model,
)
from alexnet_triton.client.inference import Inference, Outcome
from alexnet_triton.client.protocol import Classification, Failure, Json, Signature, Transport, read_signature
from alexnet_triton.client.servers import Deadline, Dispatcher, Pool, ServerState

if TYPE_CHECKING:
    from alexnet_triton.client.images import Source


# WAS alexnet_triton.client.session: Finding the model on the server.


POLL_S = 0.1
POLL_TIMEOUT_S = 2.0


async def find_model(dispatcher: Dispatcher, config: Config) -> Signature:
    """What the configured model takes and gives.

    Raises:
        ModelNotFound, SignatureMismatch: the message lists what the server has.
        ServerError: it cannot be asked.
    """

    async def ask(server: ServerState, timeout_s: float) -> Signature:
        return await _read_signature(server.transport, config, timeout_s)

    return (await dispatcher.send(ask, Deadline(config.timeout_s))).value


async def wait_until_ready(pool: Pool, config: Config, deadline: Deadline) -> None:
    """Ask until one of the servers has the model ready.

    Raises:
        ServerError: why the first server has not, when the time is over.
    """
    while True:
        answers = await asyncio.gather(*(_ask_ready(server, config, deadline) for server in pool.servers))
        if None in answers:
            return
        if deadline.left_s < POLL_S:
            raise next(error for error in answers if error)
        await asyncio.sleep(POLL_S)


async def index(transport: Transport, timeout_s: float) -> Sequence[Json]:
    """`name`, `version` and `state` of the server's models; of those that are ready, where the index is closed.

    Raises:
        ServerError: it cannot be asked.
    """
    try:
        return await transport.index(timeout_s)
    except ServerError:  # restricted, as this project's own server has it
        return [{**each, "state": "READY"} for each in await transport.statistics(timeout_s)]


async def inventory(transport: Transport, timeout_s: float) -> str:
    """What the server has, for the message about what it has not."""
    try:
        models = await index(transport, timeout_s)
    except ServerError:
        return "see what it serves with `alexnet-classify info`"
    names = [f"{each['name']} (version {each['version']})" for each in models if each.get("state") == "READY"]
    return f"this server has {', '.join(names)}" if names else "this server has no model that is ready"


async def _ask_ready(server: ServerState, config: Config, deadline: Deadline) -> ServerError | None:
    timeout_s = max(0.05, min(deadline.left_s, POLL_TIMEOUT_S))
    try:
        await server.transport.ready(config.model_name, config.version, timeout_s)
    except ServerError as error:
        return error
    return None


async def _read_signature(transport: Transport, config: Config, timeout_s: float) -> Signature:
    deadline = Deadline(timeout_s)
    try:
        described = await transport.model_config(config.model_name, config.version, timeout_s)
        signature = read_signature(described, transport.host)
    except (ModelNotFound, RequestRefused) as error:
        hint = await inventory(transport, max(deadline.left_s, 0.1))
        raise ModelNotFound(words_of_model(error.detail), error.host, hint=hint) from None
    except SignatureMismatch as error:
        hint = f"{error.hint}; {await inventory(transport, max(deadline.left_s, 0.1))}"
        raise SignatureMismatch(error.detail, error.host, error.model, hint) from None
    if config.send not in ("auto", signature.kind):
        hint = f"use --send {signature.kind}, or name another with --model"
        raise SignatureMismatch(
            f"it takes {signature.kind}, not {config.send}", transport.host, config.model_name, hint
        )
    return signature


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
        self.dispatcher = Dispatcher(config, self.pool)
        self._inference: Inference | None = None
        self._opening = asyncio.Lock()
        self._in_flight = asyncio.Semaphore(config.concurrency)
        self._readers = ThreadPoolExecutor(max(READERS, os.cpu_count() or 1), thread_name_prefix="classify-read")

    async def wait(self, wait_s: float) -> None:
        """Wait until the server and the model are ready.

        Raises:
            ServerError: why they are not, after `wait_s`.
        """
        await wait_until_ready(self.pool, self.config, Deadline(wait_s))

    async def inference(self) -> Inference:
        """The model, asked for once.

        Raises:
            ModelNotFound, SignatureMismatch: the message lists what the server has.
            ServerError: it cannot be asked.
        """
        async with self._opening:
            if self._inference is None:
                signature = await find_model(self.dispatcher, self.config)
                self._inference = Inference(self.config, self.dispatcher, signature)
        return self._inference

    async def batching(self) -> tuple[int, int]:
        """Images a request holds, at most what the model takes; and how many are sent alone before."""
        size = min(self.config.largest_batch, (await self.inference()).signature.max_batch)
        return size, 0 if self.config.batch else self.config.concurrency

    async def classify(self, sources: Sequence["Source"]) -> list[Result]:
        """Classify one batch, of at most what the model takes; a bad image fails alone.

        Raises:
            ServerError: no answer from any server.
            UsageError: a source that can be no image.
        """
        inference = await self.inference()
        async with self._in_flight:
            loaded, read_ms = await self._load(sources, inference.signature)
            good = [each for each in loaded if isinstance(each, bytes)]
            answered = iter(await self._answers(inference, good, read_ms) if good else ())
        outcomes = [next(answered) if isinstance(each, bytes) else each for each in loaded]
        return [_result(source, outcome) for source, outcome in zip(sources, outcomes, strict=True)]

    async def statistics(self) -> Sequence[Json]:
        """The counters of the first server that is well.

        Raises:
            ServerError: it cannot be asked.
        """
        deadline = Deadline(self.config.timeout_s)
        return (await self.dispatcher.send(lambda server, left_s: server.transport.statistics(left_s), deadline)).value

    async def close(self) -> None:
        """Drop the connections; what is in flight fails."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        if self._inference is not None:
            await self._inference.close()
        await self.pool.close()

    async def _load(self, sources: Sequence["Source"], signature: Signature) -> tuple[list[bytes | BadImage], float]:
        return await asyncio.get_running_loop().run_in_executor(self._readers, _load, sources, signature)

    async def _answers(self, inference: Inference, images: list[bytes], read_ms: float) -> list[Outcome]:
        """Outcomes in the order of the images; a batch that fails is halved until the bad image stands alone."""
        try:
            return await inference.run(images, read_ms)
        except (RequestRefused, ServerFault, BadAnswer) as error:
            if len(images) == 1:
                return [await self._blame(inference, error)]
        half = len(images) // 2
        halves = (self._answers(inference, part, read_ms) for part in (images[:half], images[half:]))
        first, second = await asyncio.gather(*halves)
        return first + second

    async def _blame(self, inference: Inference, error: RequestRefused | ServerFault | BadAnswer) -> ClassifierError:
        """An image that fails where a blank one is classified is bad; where that fails too, the server is.

        Raises:
            ServerError: the server cannot classify anything.
        """
        from alexnet_triton.client.images import blank

        if not (inference.proven and isinstance(error, RequestRefused)):
            await inference.run([blank(inference.signature)])
        return BadImage(words_of_model(error.detail)) if isinstance(error, RequestRefused) else error


def _load(sources: Sequence["Source"], signature: Signature) -> tuple[list[bytes | BadImage], float]:
    """The images' bytes as the model takes them, and the milliseconds that took."""
    from alexnet_triton.client.images import payload

    start, loaded = time.perf_counter(), list[bytes | BadImage]()
    for source in sources:
        try:
            loaded.append(payload(source, signature))
        except BadImage as error:
            loaded.append(error)
        except MemoryError:
            raise UsageError("out of memory: lower --concurrency or --batch") from None
    return loaded, (time.perf_counter() - start) * 1e3


def _result(source: "Source", outcome: Outcome) -> Result:
    from alexnet_triton.client.images import path_of

    path = path_of(source)
    if isinstance(outcome, ClassifierError):
        return Failure(path, outcome)
    return Classification(path, outcome.model, outcome.version, outcome.top, outcome.ms, outcome.timing)
