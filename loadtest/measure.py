"""One measured load, from intended requests to figures."""

import asyncio
import gc
import math
import multiprocessing
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alexnet_triton.client.config import Config
from alexnet_triton.loadtest.cases import Case, Target, prepare
from alexnet_triton.loadtest.engine import LEAD_S, LoadEngine, run_closed, run_open
from alexnet_triton.loadtest.errors import EndedError
from alexnet_triton.loadtest.observer import ModelView, Observer, Sample, memory_growth
from alexnet_triton.loadtest.recorder import LATENCIES, Failure, Recorder, Times, Window
from alexnet_triton.loadtest.replay import Replay
from alexnet_triton.loadtest.workload import Plan, RequestSampler, Users, Workload

RATE_TOLERANCE = 0.01
LAG_FRACTION = 0.1  # that latencies may be longer from the intended moment than from the sending
FLOOR_MS = 0.5  # what a busy machine's scheduler takes
BUSY = 0.9  # of a core
MOST_IMAGES = 200


@dataclass(frozen=True)
class Setup:
    """How a load is put on a target.

    Attributes:
        load: the open loop's plan or recorded moments, or the closed loop's users.
        connections: HTTP connections at most, and with them requests in flight.
        timeout_s: from the intended moment until a request is given up.
    """

    load: Plan | Replay | Users
    workload: Workload = field(default_factory=Workload)
    connections: int = 1024
    timeout_s: float = 10.0

    def describe(self) -> dict[str, Any]:
        """The load as plain values."""
        loop = "closed" if isinstance(self.load, Users) else "open"
        return {"loop": loop, **(self.load.describe() if isinstance(self.load, Replay) else asdict(self.load))}


@dataclass(frozen=True)
class Generator:
    """What the load generator itself did.

    Attributes:
        cores: processor time by time, of the sending thread; 1 is all that it can have.
        lag: from the intended moment to the sending.
        delayed: requests that found every connection taken.
        limits: why the figures are the generator's and not the server's, empty when they are not.
    """

    cores: float
    sent_per_s: float
    lag: Times
    delayed: int
    limits: list[str]


@dataclass(frozen=True)
class ServerView:
    """What the server said and what was seen of it; `note` says what could not be had."""

    models: list[ModelView]
    samples: list[Sample]
    memory_growth: float | None
    note: str


@dataclass(frozen=True)
class Measured:
    """The figures of one load. Rates are of right answers that came within the measured time.

    Attributes:
        latency: from the intended moment; in the closed loop from the sending.
        service: from the sending.
        refusals: from the intended moment to the refusal, or to the loss of the connection.
    """

    seconds: float
    sent: int
    right: int
    failed: int
    answered_per_s: float
    images_per_s: float
    latency: Times
    service: Times
    refusals: Times
    by_priority: dict[int, Times]
    failures: list[Failure]
    windows: list[Window]
    generator: Generator
    server: ServerView
    interrupted: bool

    @property
    def objectives(self) -> dict[str, float]:
        """What objectives are set on, NaN where nothing is known; latencies are infinite where all requests failed."""
        times, without = self.latency, math.inf if self.failed else math.nan
        ended, growth = self.failed + self.right, self.server.memory_growth
        latencies = {name: getattr(times, key) if times.count else without for name, key in LATENCIES.items()}
        rest = {"rate": self.answered_per_s, "growth": math.nan if growth is None else growth}
        return {**latencies, "errors": self.failed / ended if ended else math.nan, **rest}


async def measure(target: Target, cases: Sequence[Case], setup: Setup, seed: int = 0) -> Measured:
    """Put the load on the target. SIGINT ends it early, with the figures until then.

    Raises:
        SettingError: a load that cannot be.
        EndedError: it was ended before anything was measured.
    """
    sampler = RequestSampler(target, cases, setup.workload)
    engine = LoadEngine(sampler, Recorder(), setup.connections, setup.timeout_s)
    await engine.sender.start()
    gc.collect()
    gc.freeze()  # what is loaded by now is never looked through again, which would hold up sending
    try:
        return await _measure(engine, target, setup, seed)
    finally:
        await engine.sender.close()
        gc.unfreeze()


def measure_in_process(config: Config, images: Path, setup: Setup, seed: int = 0) -> Measured:
    """Measure in a process of its own, so that nothing that this process does holds up sending.

    Raises:
        SettingError: the images, or an impossible load.
        ServerError: the server cannot be asked.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_prepare_and_measure, config, images, setup, seed).result()


def _prepare_and_measure(config: Config, images: Path, setup: Setup, seed: int) -> Measured:
    async def run() -> Measured:
        target, cases = await prepare(config, images, MOST_IMAGES, seed)
        return await measure(target, cases, setup, seed)

    return asyncio.run(run())


async def _measure(engine: LoadEngine, target: Target, setup: Setup, seed: int) -> Measured:
    recorder, load = engine.recorder, setup.load
    start_s = time.perf_counter() + LEAD_S
    recorder.begin(start_s + load.warmup_s, start_s + load.warmup_s + load.duration_s)
    observer = Observer(target, recorder)
    observing = asyncio.create_task(observer.run())
    with suppress(RuntimeError, ValueError):  # only the main thread hears signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, _interrupt, engine, observer)
    try:
        if isinstance(load, Users):
            await run_closed(engine, load, start_s)
        else:
            await run_open(engine, load, seed, start_s)
        await observing
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        observing.cancel()
        with suppress(asyncio.CancelledError):
            await observing
    if recorder.end_s <= recorder.start_s:
        raise EndedError("ended before the warm-up was over: nothing was measured")
    return _figures(engine, observer, setup)


def _interrupt(engine: LoadEngine, observer: Observer) -> None:
    engine.recorder.end_s = min(engine.recorder.end_s, time.perf_counter())
    engine.over.set()
    observer.interrupted.set()


def _figures(engine: LoadEngine, observer: Observer, setup: Setup) -> Measured:
    recorder = engine.recorder
    seconds = recorder.end_s - recorder.start_s
    failures, samples = recorder.failure_list(), observer.sampler.samples
    latency, service, lag = map(Times.of, (recorder.latency, recorder.service, recorder.lag))
    sent_per_s = recorder.sent_in_time / seconds
    delayed = engine.sender.delayed / max(1, recorder.sent)
    limits = [] if observer.interrupted.is_set() else _shortfall(setup.load, sent_per_s)
    limits += _limits(setup, latency, service, lag, observer.cores, delayed)
    return Measured(
        seconds=seconds,
        sent=recorder.sent,
        right=recorder.right,
        failed=sum(each.count for each in failures),
        answered_per_s=recorder.finished_in_time / seconds,
        images_per_s=recorder.images / seconds,
        latency=latency,
        service=service,
        refusals=Times.of(recorder.refusals),
        by_priority={level: Times.of(each) for level, each in sorted(recorder.by_priority.items())},
        failures=failures,
        windows=recorder.windows(),
        generator=Generator(observer.cores, sent_per_s, lag, engine.sender.delayed, limits),
        server=ServerView(observer.models, samples, memory_growth(samples), observer.note),
        interrupted=observer.interrupted.is_set(),
    )


def _limits(setup: Setup, latency: Times, service: Times, lag: Times, cores: float, delayed: float) -> list[str]:
    """Why the generator and not the server decided the figures."""
    limits = []
    pairs = ((latency.p50_ms, service.p50_ms), (latency.p99_ms, service.p99_ms))
    late = any(intended > (1 + LAG_FRACTION) * sent + FLOOR_MS for intended, sent in pairs)
    if late and not isinstance(setup.load, Users):
        limits.append(f"it was late by {lag.p99_ms:.1f} ms (p99), and what was measured is longer by more than a tenth")
    if cores > BUSY:
        limits.append(f"it took {cores:.0%} of a core")
    if delayed > RATE_TOLERANCE:
        limits.append(f"{delayed:.1%} of the requests found all {setup.connections} connections taken: --connections")
    return limits


def _shortfall(load: Plan | Replay | Users, sent_per_s: float) -> list[str]:
    """By how much the generator missed a rate that is known beforehand, empty when it did not."""
    if isinstance(load, Users) or (isinstance(load, Plan) and (load.shape, load.arrivals) != ("flat", "constant")):
        return []
    if sent_per_s >= (1 - RATE_TOLERANCE) * load.rate_per_s:
        return []
    return [f"it sent {sent_per_s:,.1f} of {load.rate_per_s:,.1f} requests a second in time"]
