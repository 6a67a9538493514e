"""The machine's bound without a server: decode and network, or the network alone, on all cores.

Processes of their own do the work, so that the caller's own work is not measured.
"""

import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from alexnet_triton.imaging import decode
from alexnet_triton.loadtest.bench.config import BATCH, CORES, BenchConfig
from alexnet_triton.serving.engine import BatchEngine, EngineConfig
from alexnet_triton.serving.plan_engine import load_engine

# Processes, and threads of each. A GPU is shared by two, of which one copies while the other computes.
LAYOUTS = {"openvino": ((CORES, 1), (1, CORES)), "tensorrt": ((1, 1), (2, 1))}
MOST_PROCESSES = {"openvino": CORES, "tensorrt": 16}  # each holds a plan's buffers and half a gigabyte of CUDA's own
ENGINE_BATCHES = (8, 16, 32)
WARM_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class EngineSetting:
    """How the engine runs without a server."""

    processes: int
    threads: int
    batch: int


def decode_and_network(config: BenchConfig) -> float:
    """Images a second, decoded and classified in batches by one process a core."""
    return _sum_rates(min(CORES, MOST_PROCESSES[config.engine]), _decode_and_classify, config, config.seconds)


def best_engine_setting(config: BenchConfig) -> EngineSetting:
    """The setting that gives most images a second, each measured for half of `config.seconds`."""
    settings = [EngineSetting(*layout, batch) for layout in LAYOUTS[config.engine] for batch in ENGINE_BATCHES]
    return max(settings, key=lambda setting: network_alone(config, setting, config.seconds / 2))


def network_alone(config: BenchConfig, setting: EngineSetting, seconds: float) -> float:
    """Images a second of the engine, which is given uint8 pixels."""
    return _sum_rates(setting.processes, _classify, config, setting, seconds)


def one_at_a_time(config: BenchConfig) -> list[float]:
    """Milliseconds of decode and network for single images, one after another, each on all cores."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_time_single, config).result()


def _sum_rates(processes: int, work: Callable[..., float], *arguments: object) -> float:
    """The sum of the rates that the processes measure at the same time: each waits until all are warm."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        all_warm = manager.Barrier(processes, timeout=WARM_TIMEOUT_S)
        runs = [pool.submit(work, all_warm, *arguments) for _ in range(processes)]
        return sum(run.result() for run in runs)


def _decode_and_classify(all_warm: threading.Barrier, config: BenchConfig, seconds: float) -> float:
    engine, files = _load_engine(config, BATCH, threads=1), itertools.cycle(config.load_images())
    size = engine.input_size
    pixels = np.empty((BATCH, size, size, 3), np.uint8)

    def step() -> None:
        for row in range(BATCH):
            pixels[row] = decode(next(files), size)
        engine.infer(pixels)

    return BATCH * _measure_rate(all_warm, seconds, step)


def _classify(all_warm: threading.Barrier, config: BenchConfig, setting: EngineSetting, seconds: float) -> float:
    engine = _load_engine(config, setting.batch, setting.threads)
    shape = (setting.batch, engine.input_size, engine.input_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return setting.batch * _measure_rate(all_warm, seconds, lambda: engine.infer(pixels))


def _time_single(config: BenchConfig) -> list[float]:
    engine, files = _load_engine(config, BATCH, threads=1), itertools.cycle(config.load_images())
    times_ms: list[float] = []
    end = time.perf_counter() + config.seconds
    while (start := time.perf_counter()) < end:
        engine.infer(decode(next(files), engine.input_size)[None])
        times_ms.append((time.perf_counter() - start) * 1e3)
    return times_ms


def _load_engine(config: BenchConfig, max_batch_size: int, threads: int) -> BatchEngine:
    settings = EngineConfig(threads=threads, max_batch_size=max_batch_size, engine=config.engine)
    engine = load_engine(config.network, settings)
    engine.warm_up()
    return engine


def _measure_rate(all_warm: threading.Barrier, seconds: float, step: Callable[[], object]) -> float:
    """Steps a second, from the moment at which every process is warm."""
    step()
    all_warm.wait()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        done += 1
    return done / (time.perf_counter() - start)
