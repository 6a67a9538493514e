"""The speed of plans without a server: batches of 1 to 64 images, with and without CUDA graphs, the copies apart.

A program of its own, which `gpu-check` runs with a time limit: PROGRAM FOLDER... --json FILE, where each folder holds a
`model.plan`. What it times is wall time, from the call to the end of the stream. On a GPU: not run: no GPU.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from alexnet_triton.common.command import Parser, finish, positive_float
from alexnet_triton.common.files import write_json
from alexnet_triton.serving.cuda import Device
from alexnet_triton.serving.engine import EngineConfig
from alexnet_triton.serving.plan_engine import PlanEngine

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


def energy_meter() -> ReadJoules | None:
    """The first GPU's own count of joules, from NVML; None where it has none.

    Source: nvmlDeviceGetTotalEnergyConsumption, NVML API reference; cuda-bindings 13.5.
    """
    try:
        from cuda.bindings import nvml  # of the extra gpu

        nvml.init_v2()
        handle = nvml.device_get_handle_by_index_v2(0)
        nvml.device_get_total_energy_consumption(handle)
    except Exception:  # its errors share no base class; a GPU before Volta has no count
        return None
    return lambda: nvml.device_get_total_energy_consumption(handle) / 1e3


def main(words: Sequence[str] | None = None) -> int:
    """Measure plans; returns the exit code."""
    parser = Parser(prog="plan-speed", description="The speed of plans in process, without a server.")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="with a model.plan in it")
    parser.add_argument("--seconds", type=positive_float, default=0.5, help="of each measurement (0.5)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(words)
    return finish(parser.prog, lambda: _run(options.folders, options.seconds, options.json))


def _run(folders: Sequence[Path], seconds: float, file: Path) -> None:
    device, read_joules = Device(), energy_meter()
    config = EngineConfig(max_batch_size=max(BATCHES), engine="tensorrt")
    found = {folder.name: measure_plan(PlanEngine(folder, config, device), seconds, read_joules) for folder in folders}
    write_json(file, found)


if __name__ == "__main__":
    sys.exit(main())
