"""What is seen of server and generator during a load."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from client.aio import AsyncClassifier
from client.errors import ServerError
from loadtest.cases import Target
from loadtest.recorder import Recorder
from loadtest.sampler import Sample, Sampler, find_place
from loadtest.triton_stats import ModelView, compare_stats, index_stats


class Observer:
    """Looks at server and generator at the beginning and the end of the measured time, and each second of it."""

    def __init__(self, target: Target, recorder: Recorder, metrics_url: str | None) -> None:
        self._target, self._recorder = target, recorder
        self._interrupted = asyncio.Event()
        self.sampler = Sampler(find_place(target.address, metrics_url), recorder.end_s - recorder.start_s)
        self.models: list[ModelView] = []
        self.cores, self.note = 0.0, ""

    @property
    def interrupted(self) -> bool:
        return self._interrupted.is_set()

    def interrupt(self) -> None:
        self._interrupted.set()

    async def run(self) -> None:
        async with AsyncClassifier.from_config(self._target.config) as classifier:
            await self._until(self._recorder.start_s)
            before, at_s, busy_s = await self._stats(classifier), time.perf_counter(), time.thread_time()
            await asyncio.to_thread(self.sampler.start)
            await self._until(self._recorder.end_s)
            self.cores = (time.thread_time() - busy_s) / max(1e-9, time.perf_counter() - at_s)
            await asyncio.to_thread(self.sampler.stop)
            self.models = compare_stats(index_stats(before), index_stats(await self._stats(classifier)))

    async def _until(self, moment_s: float) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._interrupted.wait(), max(0.0, moment_s - time.perf_counter()))

    async def _stats(self, classifier: AsyncClassifier) -> Sequence[Any]:
        try:
            return await classifier.session.statistics()
        except ServerError as error:
            self.note = f"no statistics: {error.detail}"
            return ()


def memory_growth(samples: Sequence[Sample]) -> float:
    """Of the server's memory, from the first quarter of the samples to the last, as a part; 0 where it is unknown."""
    held = [each.server.memory_mib for each in samples if each.server]
    quarter = len(held) // 4
    if not quarter:
        return 0.0
    first, last = statistics.median(held[:quarter]), statistics.median(held[-quarter:])
    return last / first - 1 if first else 0.0
