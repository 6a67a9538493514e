"""What server and generator do during a load: Triton's own counts before and after, and samples between.

A sample has memory, descriptors and cores of the generator and, where it runs on this machine, of the server.
"""

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from alexnet_triton.client.classifier import AsyncClassifier
from alexnet_triton.client.config import Address
from alexnet_triton.client.errors import ServerError
from alexnet_triton.loadtest.cases import Target
from alexnet_triton.loadtest.recorder import Recorder
from alexnet_triton.serving.runs import find_runs

INTERVAL_S = 1.0
MOST_SAMPLES = 1800


@dataclass(frozen=True)
class Usage:
    """Of a process and those below it. `cores` is processor time by time, since the sample before."""

    cores: float
    memory_mib: float
    descriptors: int


@dataclass(frozen=True)
class Sample:
    """One moment; None is what could not be had."""

    at_s: float
    generator: Usage
    server: Usage | None


def find_process(address: Address) -> int | None:
    """The process of the server behind an address, where it is one of this project's on this machine."""
    for run in find_runs():
        ports = run.state["ports"]
        if run.state["host"] == address.host and address.port in (ports["http"], ports["grpc"]):
            return run.state["tritonserver"]
    return None


class Sampler:
    """Samples in a thread from `start` to `stop`."""

    def __init__(self, pid: int | None, seconds: float) -> None:
        """`seconds` is how long it will be: of a long run, fewer moments are kept. `pid` is the server's, if known."""
        self._interval_s = max(INTERVAL_S, seconds / MOST_SAMPLES)
        self.samples: list[Sample] = []
        self._own, self._server = _Meter(os.getpid()), _Meter(pid)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Take the first sample after an interval."""
        self._started_s = time.monotonic()
        self._own.read()
        self._server.read()
        self._thread.start()

    def stop(self) -> None:
        """Take no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            own, server = self._own.read(), self._server.read()
            assert own, "this process runs"
            self.samples.append(Sample(time.monotonic() - self._started_s, own, server))


class _Meter:
    def __init__(self, pid: int | None) -> None:
        self._root: psutil.Process | None = None
        with suppress(psutil.NoSuchProcess):
            self._root = psutil.Process(pid) if pid else None
        self._cpu_s = self._at_s = 0.0

    def read(self) -> Usage | None:
        """Since the reading before; None where the process is unknown or gone."""
        if self._root is None:
            return None
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            return self._measure([self._root, *self._root.children(recursive=True)])
        return None

    def _measure(self, processes: Sequence[psutil.Process]) -> Usage:
        cpu_s = memory = descriptors = 0.0
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu_s += times.user + times.system
                memory += process.memory_info().rss
                descriptors += process.num_fds()
        now_s = time.monotonic()
        cores = (cpu_s - self._cpu_s) / max(1e-9, now_s - self._at_s)
        self._cpu_s, self._at_s = cpu_s, now_s
        return Usage(max(0.0, cores), memory / 2**20, int(descriptors))


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
