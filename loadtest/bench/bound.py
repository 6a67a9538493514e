"""What the processor can do without a server: decode and network, or the network alone, on all cores.

Each measurement is made by processes of its own, so that nothing of the caller is measured.
"""

import itertools
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from alexnet_triton.imaging import decode
from alexnet_triton.loadtest.bench import photographs
from alexnet_triton.loadtest.bench.config import BATCH, CORES
from alexnet_triton.serving.engine import Engine, EngineConfig

# Processes and threads of each: a core each, or one that has all.
LAYOUTS = ((CORES, 1), (1, CORES))
ENGINE_BATCHES = (8, 16, 32)


def decode_and_network(network: Path, bodies: Path, seconds: float) -> float:
    """Images a second, decoded and classified in batches, a process a core."""
    return _together(CORES, _decode_and_classify, (network, bodies), seconds)


@dataclass(frozen=True)
class EngineSetting:
    """How the engine is run alone."""

    processes: int
    threads: int
    batch: int


def best_engine_setting(network: Path, seconds: float) -> EngineSetting:
    """The one that gives most images a second."""
    settings = [EngineSetting(*layout, batch) for layout in LAYOUTS for batch in ENGINE_BATCHES]
    return max(settings, key=lambda setting: network_alone(network, setting, seconds))


def network_alone(network: Path, setting: EngineSetting, seconds: float) -> float:
    """Images a second of uint8 pixels."""
    return _together(setting.processes, _classify, (network, setting.threads, setting.batch), seconds)


def one_at_a_time(network: Path, bodies: Path, seconds: float) -> list[float]:
    """Milliseconds of decode and network of single images, one after another, the network on all cores."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_time_single, args=(child, network, bodies, seconds))
    process.start()
    times_ms = parent.recv()
    process.join()
    return times_ms


def _together(count: int, work: Callable[..., None], arguments: tuple, seconds: float) -> float:
    """The sum of what `count` processes measure at the same time."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=work, args=(child, seconds, *arguments)) for _, child in pipes]
    for process in processes:
        process.start()
    for parent, _ in pipes:
        parent.recv()  # warm
    for parent, _ in pipes:
        parent.send(None)
    rates = [parent.recv() for parent, _ in pipes]
    for process in processes:
        process.join()
    return sum(rates)


def _decode_and_classify(pipe: Connection, seconds: float, network: Path, bodies: Path) -> None:
    engine, files = _engine(network, BATCH, threads=1), itertools.cycle(photographs.load_images(bodies))
    size = engine.input_size
    pixels = np.empty((BATCH, size, size, 3), np.uint8)

    def step() -> int:
        for row in range(BATCH):
            pixels[row] = decode(next(files), size)
        engine.infer(pixels)
        return BATCH

    _measure(pipe, seconds, step)


def _classify(pipe: Connection, seconds: float, network: Path, threads: int, batch: int) -> None:
    engine = _engine(network, batch, threads)
    shape = (batch, engine.input_size, engine.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def step() -> int:
        engine.infer(pixels)
        return batch

    _measure(pipe, seconds, step)


def _time_single(pipe: Connection, network: Path, bodies: Path, seconds: float) -> None:
    engine, files = _engine(network, BATCH, threads=1), itertools.cycle(photographs.load_images(bodies))
    times_ms: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        engine.infer(decode(next(files), engine.input_size)[None])
        times_ms.append((time.perf_counter() - start) * 1e3)
    pipe.send(times_ms)


def _engine(network: Path, max_batch_size: int, threads: int) -> Engine:
    engine = Engine(network, EngineConfig(threads=threads, max_batch_size=max_batch_size))
    engine.warm_up()
    return engine


def _measure(pipe: Connection, seconds: float, step: Callable[[], int]) -> None:
    """Tell the parent when warm, wait for its word, and send images a second."""
    step()
    pipe.send(None)
    pipe.recv()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += step()
    pipe.send(done / (time.perf_counter() - start))
