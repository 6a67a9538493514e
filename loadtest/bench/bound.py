"""The machine without a server: decode and network, or the network alone, on all cores; and TensorRT plans.

Processes of their own do the work, so that the caller's own work is not measured. Plans are timed by this module as a
program, which `gpu-check` runs with a time limit: PROGRAM FOLDER... --json FILE, with a `model.plan` in each folder.
"""

import itertools
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np

from alexnet_triton.common.command import Parser, finish, positive_float
from alexnet_triton.common.files import write_json
from alexnet_triton.export.onnx_file import first_line
from alexnet_triton.imaging import decode
from alexnet_triton.loadtest.bench.config import BenchConfig, BenchError
from alexnet_triton.loadtest.bench.peers import BATCH, CORES
from alexnet_triton.serving.engine import BatchEngine, EngineConfig
from alexnet_triton.serving.plan_engine import Device, PlanEngine, bus_address, load_engine

# Processes, and threads of each. A GPU is shared by two, of which one copies while the other computes.
LAYOUTS = {"openvino": ((CORES, 1), (1, CORES)), "tensorrt": ((1, 1), (2, 1))}
MOST_PROCESSES = {"openvino": CORES, "tensorrt": 16}  # each holds a plan's buffers and half a gigabyte of CUDA's own
ENGINE_BATCHES = (8, 16, 32)
WARM_TIMEOUT_S = 120.0
COPIED_BYTES = 2**27
Result = TypeVar("Result")


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


def memory_speed(seconds: float) -> float:
    """Gigabytes a second that all cores together read and write, copying what no cache holds."""
    return _sum_rates(CORES, _copy, seconds) * 2 * COPIED_BYTES / 1e9


def _copy(all_warm: threading.Barrier, seconds: float) -> float:
    source, target = np.ones(COPIED_BYTES, np.uint8), np.empty(COPIED_BYTES, np.uint8)
    return _measure_rate(all_warm, seconds, lambda: np.copyto(target, source))


def run_together(processes: int, work: Callable[..., Result], *arguments: object) -> list[Result]:
    """What each measures at the same time; the first argument of `work` is where it waits until all are warm."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, context) as pool:
        all_warm = manager.Barrier(processes, timeout=WARM_TIMEOUT_S)
        runs = [pool.submit(work, all_warm, *arguments) for _ in range(processes)]
        return [run.result() for run in runs]


def _sum_rates(processes: int, work: Callable[..., float], *arguments: object) -> float:
    return sum(run_together(processes, work, *arguments))


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


# ---- plans; on a GPU: not run: no GPU

BATCHES = (1, 2, 4, 8, 16, 32, 64)
ReadJoules = Callable[[], float]  # what the GPU has used since some moment


def measure_plan(engine: PlanEngine, seconds: float, read_joules: ReadJoules | None = None) -> list[dict[str, Any]]:
    """A row for each batch size: milliseconds of the network alone, layer by layer and as a graph, of the copies alone,
    and of the whole; images a second of the whole, and images a joule where `read_joules` is given.

    Args:
        seconds: of each measurement.
    """
    return [_measure_batch(engine, batch, seconds, read_joules) for batch in BATCHES if batch <= max(engine.graphs)]


def _measure_batch(engine: PlanEngine, batch: int, seconds: float, read_joules: ReadJoules | None) -> dict[str, Any]:
    row: dict[str, Any] = {"batch": batch}
    for name, parts in {
        "layers_ms": (engine.enqueue,),
        "graph_ms": (engine.launch,),
        "copies_ms": (engine.copy_in, engine.copy_out),
        "whole_ms": (engine.copy_in, engine.launch, engine.copy_out),
    }.items():
        joules = read_joules() if read_joules else 0.0
        times_ms = _time(engine, parts, batch, seconds)
        row[name] = median(times_ms)
    row["images_per_s"] = 1e3 * batch * len(times_ms) / sum(times_ms)
    if read_joules and (used := read_joules() - joules) > 0:
        row["images_per_joule"] = batch * len(times_ms) / used
    return row


def _time(engine: PlanEngine, parts: Sequence[Callable[[int], None]], batch: int, seconds: float) -> list[float]:
    """Milliseconds of each run of the parts, one after another, after one that is not counted."""
    times_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(times_ms) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        for part in parts:
            part(batch)
        engine.synchronize()
        times_ms.append(1e3 * (time.perf_counter() - start))
    return times_ms[1:]


def energy_meter() -> ReadJoules:
    """The count of joules that the first GPU keeps, from NVML.

    Source: nvmlDeviceGetTotalEnergyConsumption, NVML API reference; cuda-bindings 13.5.

    Raises:
        BenchError: it keeps none, such as one before Volta, or there is no NVML.
    """
    try:
        from cuda.bindings import nvml  # of the extra gpu

        nvml.init_v2()
        handle = nvml.device_get_handle_by_pci_bus_id_v2(bus_address())
        nvml.device_get_total_energy_consumption(handle)
    except Exception as error:  # NVML's errors share no base class with the others
        raise BenchError(f"not counted: {first_line(error) or type(error).__name__}") from error
    return lambda: nvml.device_get_total_energy_consumption(handle) / 1e3


@cache
def find_energy_meter() -> tuple[ReadJoules | None, str]:
    """The meter where there is one; and in words what is counted, or why nothing is."""
    try:
        return energy_meter(), "NVML's count of the first GPU"
    except BenchError as error:
        return None, str(error)


def measure_energy(load: Callable[[], dict[str, Any]], read_joules: ReadJoules) -> dict[str, Any]:
    """A load's row, with the GPU's watts meanwhile and its images a joule."""
    joules, start = read_joules(), time.perf_counter()
    row = load()
    watts = (read_joules() - joules) / (time.perf_counter() - start)
    return {**row, "gpu_w": watts, "images_per_joule": row["images_per_s"] / watts if watts > 0 else 0.0}


def main(words: Sequence[str] | None = None) -> int:
    """Measure plans; returns the exit code."""
    parser = Parser(prog="plan-speed", description="The speed of plans in process, without a server.")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="with a model.plan in it")
    parser.add_argument("--seconds", type=positive_float, default=0.5, help="of each measurement (0.5)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(words)
    return finish(parser.prog, lambda: _run(options.folders, options.seconds, options.json))


def _run(folders: Sequence[Path], seconds: float, file: Path) -> None:
    device, config = Device(), EngineConfig(max_batch_size=max(BATCHES), engine="tensorrt")
    read_joules, energy = find_energy_meter()
    plans = {folder.name: measure_plan(PlanEngine(folder, config, device), seconds, read_joules) for folder in folders}
    write_json(file, {"energy": energy, "plans": plans})


if __name__ == "__main__":
    sys.exit(main())
