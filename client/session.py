"""The core under both classifiers: images in, classifications out, on an event loop."""

import asyncio
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from client.config import Config
from client.dispatch import Dispatcher
from client.errors import BadAnswer, BadImage, ClassifierError, RequestRefused, ServerFault, UsageError
from client.inference import Inference, Outcome
from client.messages import words_of_model
from client.model import find_model, wait_until_ready
from client.pool import Pool
from client.results import Classification, Failure
from client.retry import Deadline
from client.signature import Signature
from client.wire import Json

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
        from client.images import blank

        if not (inference.proven and isinstance(error, RequestRefused)):
            await inference.run([blank(inference.signature)])
        return BadImage(words_of_model(error.detail)) if isinstance(error, RequestRefused) else error


def _load(sources: Sequence["Source"], signature: Signature) -> tuple[list[bytes | BadImage], float]:
    """The images' bytes as the model takes them, and the milliseconds that took."""
    from client.images import payload

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
    from client.images import path_of

    path = path_of(source)
    if isinstance(outcome, ClassifierError):
        return Failure(path, outcome)
    return Classification(path, outcome.model, outcome.version, outcome.top, outcome.ms, outcome.timing)
