"""The machine's bound without a server: decode and network, or the network alone, on all cores.

Processes of their own do the work, so that the caller's own work is not measured.
"""

import itertools
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from alexnet_triton.imaging import decode
from alexnet_triton.loadtest.bench.config import BATCH, CORES
from alexnet_triton.loadtest.bench.photographs import load_images
from alexnet_triton.serving.engine import Engine, EngineConfig

LAYOUTS = ((CORES, 1), (1, CORES))  # processes, and threads of each
ENGINE_BATCHES = (8, 16, 32)


@dataclass(frozen=True)
class EngineSetting:
    """How the engine runs without a server."""

    processes: int
    threads: int
    batch: int


def decode_and_network(network: Path, bodies: Path, seconds: float) -> float:
    """Images a second, decoded and classified in batches by one process a core."""
    return _sum_rates(CORES, _decode_and_classify, (network, bodies), seconds)


def best_engine_setting(network: Path, seconds: float) -> EngineSetting:
    """The setting that gives most images a second."""
    settings = [EngineSetting(*layout, batch) for layout in LAYOUTS for batch in ENGINE_BATCHES]
    return max(settings, key=lambda setting: network_alone(network, setting, seconds))


def network_alone(network: Path, setting: EngineSetting, seconds: float) -> float:
    """Images a second of the engine, which is given uint8 pixels."""
    return _sum_rates(setting.processes, _classify, (network, setting.threads, setting.batch), seconds)


def one_at_a_time(network: Path, bodies: Path, seconds: float) -> list[float]:
    """Milliseconds of decode and network for single images, one after another, each on all cores."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_time_single, network, bodies, seconds).result()


def _sum_rates(count: int, work: Callable[..., None], arguments: tuple, seconds: float) -> float:
    """The sum of the rates that `count` processes measure at the same time."""
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
    engine, files = _load_engine(network, BATCH, threads=1), itertools.cycle(load_images(bodies))
    size = engine.input_size
    pixels = np.empty((BATCH, size, size, 3), np.uint8)

    def step() -> int:
        for row in range(BATCH):
            pixels[row] = decode(next(files), size)
        engine.infer(pixels)
        return BATCH

    _measure_rate(pipe, seconds, step)


def _classify(pipe: Connection, seconds: float, network: Path, threads: int, batch: int) -> None:
    engine = _load_engine(network, batch, threads)
    shape = (batch, engine.input_size, engine.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def step() -> int:
        engine.infer(pixels)
        return batch

    _measure_rate(pipe, seconds, step)


def _time_single(network: Path, bodies: Path, seconds: float) -> list[float]:
    engine, files = _load_engine(network, BATCH, threads=1), itertools.cycle(load_images(bodies))
    times_ms: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        engine.infer(decode(next(files), engine.input_size)[None])
        times_ms.append((time.perf_counter() - start) * 1e3)
    return times_ms


def _load_engine(network: Path, max_batch_size: int, threads: int) -> Engine:
    engine = Engine(network, EngineConfig(threads=threads, max_batch_size=max_batch_size))
    engine.warm_up()
    return engine


def _measure_rate(pipe: Connection, seconds: float, step: Callable[[], int]) -> None:
    """Report that the process is warm, wait for the start, and send images a second."""
    step()
    pipe.send(None)
    pipe.recv()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += step()
    pipe.send(done / (time.perf_counter() - start))
