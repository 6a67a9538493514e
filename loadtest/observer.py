"""What server and generator do during a load: Triton's own counts before and after, and samples between."""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from alexnet_triton.client.classifier import AsyncClassifier
from alexnet_triton.client.errors import ServerError
from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.recorder import Recorder
from alexnet_triton.loadtest.sampler import Sample, Sampler, find_process

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
Models = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ModelView:
    """One model during the run.

    Attributes:
        inferences: images. A batch of several in one request counts as several.
        executions: batches that the model ran.
        batches: size to how often it was run.
        parts_ms: mean time of a request in the queue, and in each part of the computation, in Triton's names.
    """

    name: str
    version: str
    requests: int
    failed: int
    inferences: int
    executions: int
    batches: dict[int, int]
    parts_ms: dict[str, float]


def compare_stats(before: Models, after: Models) -> list[ModelView]:
    """What each model did between two answers of Triton's statistics extension; idle models are left out.

    Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
    """
    earlier = {(each["name"], each["version"]): each for each in before}
    views = [_view(earlier.get((each["name"], each["version"]), {}), each) for each in after]
    return [view for view in views if view.requests or view.failed]


def _view(before: Mapping[str, Any], after: Mapping[str, Any]) -> ModelView:
    def grown(name: str) -> int:
        return int(after.get(name, 0)) - int(before.get(name, 0))

    def grown_part(part: str, name: str) -> int:
        new, old = (int(each.get("inference_stats", {}).get(part, {}).get(name, 0)) for each in (after, before))
        return new - old

    requests = grown_part("success", "count")
    old, new = _batches(before), _batches(after)
    return ModelView(
        name=after["name"],
        version=after["version"],
        requests=requests,
        failed=grown_part("fail", "count"),
        inferences=grown("inference_count"),
        executions=grown("execution_count"),
        batches={size: count - old.get(size, 0) for size, count in sorted(new.items()) if count > old.get(size, 0)},
        parts_ms={part: grown_part(part, "ns") / max(1, requests) / 1e6 for part in PARTS},
    )


def _batches(stats: Mapping[str, Any]) -> dict[int, int]:
    batches = stats.get("batch_stats", ())
    return {int(each["batch_size"]): int(each.get("compute_infer", {}).get("count", 0)) for each in batches}


class Observer:
    """Looks at server and generator at the beginning and the end of the measured time, and each second of it."""

    def __init__(self, target: Target, recorder: Recorder) -> None:
        self._target, self._recorder = target, recorder
        self.interrupted = asyncio.Event()
        self.sampler = Sampler(find_process(target.address), recorder.end_s - recorder.start_s)
        self.models: list[ModelView] = []
        self.cores, self.note = 0.0, ""

    async def run(self) -> None:
        async with AsyncClassifier.from_config(self._target.config) as classifier:
            await self._until(self._recorder.start_s)
            before, at_s, busy_s = await self._stats(classifier), time.perf_counter(), time.thread_time()
            await asyncio.to_thread(self.sampler.start)
            await self._until(self._recorder.end_s)
            self.cores = (time.thread_time() - busy_s) / max(1e-9, time.perf_counter() - at_s)
            await asyncio.to_thread(self.sampler.stop)
            self.models = compare_stats(before, await self._stats(classifier))

    async def _until(self, moment_s: float) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.interrupted.wait(), max(0.0, moment_s - time.perf_counter()))

    async def _stats(self, classifier: AsyncClassifier) -> Models:
        try:
            return await classifier.session.statistics()
        except ServerError as error:
            self.note = f"no statistics: {error.detail}"
            return ()


def memory_growth(samples: Sequence[Sample]) -> float | None:
    """Of the server's memory, from the first quarter of the samples to the last, as a fraction; None if unknown."""
    held = [each.server.memory_mib for each in samples if each.server]
    quarter = len(held) // 4
    if not quarter:
        return None
    first, last = statistics.median(held[:quarter]), statistics.median(held[-quarter:])
    return last / first - 1 if first else None
