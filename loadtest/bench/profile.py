"""Stage `profile`: where the processor's time of an image goes, in core-ms: by process under load, and by step of the
work without a server.

Under load, the processor time of each process counts, by /proc, over the images answered meanwhile. The work, decode,
resize and network, is measured by processes of their own on all cores, as they are all busy under load. OpenVINO times
the layers by the clock: each has its part of the network's processor time.
"""

import itertools
import resource
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import psutil

from alexnet_triton.common.files import replacing
from alexnet_triton.imaging import center_box, open_image, resample
from alexnet_triton.loadtest.bench.bound import run_together
from alexnet_triton.loadtest.bench.config import Advance, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.peers import BATCH, CORES
from alexnet_triton.loadtest.bench.report import Rows, take_turns
from alexnet_triton.loadtest.bench.servers import Triton, triton
from alexnet_triton.loadtest.bench.wrk import Load, count_answers, jpeg_load
from alexnet_triton.serving.engine import Engine, EngineConfig

BARS = UNDER_LOAD, NO_SERVER = "under load", "no server"
DECODE, RESIZE, NETWORK = "decode", "resize", "network"
GENERATOR, WATCHER, SUPERVISOR = "load generator", "watcher", "supervisor"
REST = f"{NETWORK}: between layers"
WARM_BATCHES = 3
Layer = tuple[str, str]
SERVER_MODULE = "alexnet_triton.serving.supervisor"
BAR, INCHES, LEAST_DRAWN_MS = 0.6, (9.0, 3.4), 0.005


@dataclass(frozen=True)
class Work:
    """What one process did.

    Attributes:
        decode_s, resize_s, network_s: processor seconds of an image.
        layers: by name and OpenVINO's type, the part of the network's time that was in each.
    """

    decode_s: float
    resize_s: float
    network_s: float
    layers: Mapping[Layer, float]


def measure(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Core-ms an image by process and by step, medians of the rounds.

    Raises:
        BenchError: nothing was answered.
    """
    layers: Rows = []
    with triton(config.repository, config.folder) as server:
        jpeg_load(server, config.profile_connections, config.warm_up_s, config.bodies)
        targets: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            UNDER_LOAD: partial(_load, config, server),
            NO_SERVER: partial(_work, config, layers),
        }
        rows = take_turns(config, advance, targets)
    summary = _summarise([row for row in rows if "core_ms" in row])
    rates = [row["images_per_s"] for row in rows if "images_per_s" in row]
    load = {"connections": config.profile_connections, "images_per_s": median(rates)}
    return {"rows": rows, "summary": summary, "load": load, "layers": layers, "ratios": _compare(summary)}


# ---- under load


def _load(config: BenchConfig, server: Triton) -> Rows:
    """A row for each kind of process, and one with the rate."""
    load = partial(jpeg_load, server, config.profile_connections, config.seconds, config.bodies)
    seen, spent_s = measure_processes(server, load)
    rows = [_row(UNDER_LOAD, name, seconds) for name, seconds in spent_s.items()]
    return [*rows, {"images_per_s": seen.images_per_s}]


def measure_processes(server: Triton, load: Callable[[], Load]) -> tuple[Load, dict[str, float]]:
    """A load, and the processor seconds of an answered image meanwhile by kind of process, the load generator's too.

    Raises:
        BenchError: nothing was answered.
    """
    answered, before, generator_s = count_answers(server, "classify"), _processor_times(server), _generator_s()
    seen = load()
    generator_s, after = _generator_s() - generator_s, _processor_times(server)
    images = count_answers(server, "classify") - answered
    if images < 1:
        raise BenchError(f"no image was answered: see {server.log}")
    spent_s: dict[str, float] = defaultdict(float)
    for (pid, name), cpu_s in after.items():
        spent_s[name] += cpu_s - before.get((pid, name), 0.0)
    spent_s[GENERATOR] = generator_s
    return seen, {name: seconds / images for name, seconds in spent_s.items()}


def _processor_times(server: Triton) -> dict[tuple[int, str], float]:
    """Processor seconds of the server's processes until now, by process id and name."""
    times = {}
    for process in server.processes:
        with suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            name = WATCHER if process.pid == server.process.pid else name_process(process.cmdline())
            times[process.pid, name] = used.user + used.system
    return times


def name_process(command: Sequence[str]) -> str:
    """What a process of the server is, by its command line: a stub's names the model that it runs."""
    if len(command) > 1 and command[1].endswith("/model.py"):
        return f"stub of {Path(command[1]).parents[1].name}"
    return SUPERVISOR if SERVER_MODULE in command else Path(command[0]).name if command else "ended"


def _generator_s() -> float:
    """Processor seconds of the load generators that have ended: of all child processes, only they have."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- without a server


def _work(config: BenchConfig, layers: Rows) -> Iterator[dict[str, Any]]:
    """A row for each step, the network's by type of layer; `layers` becomes the single layers of this round."""
    done = run_together(CORES, _measure_work, config)
    for name, field in ((DECODE, "decode_s"), (RESIZE, "resize_s")):
        yield _row(NO_SERVER, name, mean(getattr(each, field) for each in done))
    network_s = mean(each.network_s for each in done)
    parts = {layer: mean(each.layers[layer] for each in done) for layer in done[0].layers}
    layers[:] = [{"name": name, "type": kind, "core_ms": 1e3 * network_s * parts[name, kind]} for name, kind in parts]
    for kind in dict.fromkeys(kind for _, kind in parts):
        part = sum(part for layer, part in parts.items() if layer[1] == kind)
        yield _row(NO_SERVER, f"{NETWORK}: {kind}", network_s * part)
    yield _row(NO_SERVER, REST, network_s * max(0.0, 1 - sum(parts.values())))


def _measure_work(all_warm: threading.Barrier, config: BenchConfig) -> Work:
    engine = Engine(config.network, EngineConfig(threads=1, max_batch_size=BATCH, profiled=True))
    files = itertools.cycle(config.load_images())
    pixels = np.empty((BATCH, engine.input_size, engine.input_size, 3), np.uint8)
    for _ in range(WARM_BATCHES):
        _classify_batch(engine, files, pixels)
    warm = engine.layer_times()
    all_warm.wait()
    spent_s, batches, start_s = np.zeros(4), 0, time.perf_counter()
    while time.perf_counter() - start_s < config.seconds:
        spent_s += _classify_batch(engine, files, pixels)
        batches += 1
    layers = {}
    for before, after in zip(warm, engine.layer_times(), strict=True):
        own_s = after.seconds * (WARM_BATCHES + batches) - before.seconds * WARM_BATCHES
        layers[after.name, after.kind] = max(0.0, own_s / spent_s[3])
    decode_s, resize_s, network_s = (spent_s[:3] / (batches * BATCH)).tolist()
    return Work(decode_s, resize_s, network_s, layers)


def _classify_batch(engine: Engine, files: Iterator[bytes], pixels: np.ndarray) -> np.ndarray:
    """Seconds [4]: of the processor for decoding, scaling and the network, and for the network by the clock.

    The first two are what `imaging.decode` does.
    """
    decode_s = resize_s = 0.0
    for row in pixels:
        start_s = time.process_time()
        image = open_image(next(files))
        decoded_s = time.process_time()
        row[:] = resample(image, center_box(*image.size, len(row)), len(row))
        decode_s += decoded_s - start_s
        resize_s += time.process_time() - decoded_s
    start_s, clock_s = time.process_time(), time.perf_counter()
    engine.infer(pixels)
    return np.array([decode_s, resize_s, time.process_time() - start_s, time.perf_counter() - clock_s])


# ---- both


def _row(where: str, what: str, seconds: float) -> dict[str, Any]:
    return {"where": where, "target": what, "core_ms": 1e3 * seconds}


def _summarise(rows: Rows) -> Rows:
    """One row for each process and each step, the median of the rounds."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: row["where"] == NO_SERVER):
        groups.setdefault((row["where"], row["target"]), []).append(row["core_ms"])
    return [{"where": where, "target": what, "core_ms": median(found)} for (where, what), found in groups.items()]


def _compare(summary: Rows) -> dict[str, float]:
    total_ms = {where: sum(row["core_ms"] for row in summary if row["where"] == where) for where in BARS}
    generator_ms = sum(row["core_ms"] for row in summary if row["target"] == GENERATOR)
    server_ms = total_ms[UNDER_LOAD] - generator_ms
    return {
        "core-ms an image, the server": server_ms,
        "core-ms an image, decode and network without a server": total_ms[NO_SERVER],
        "core-ms an image, the server above them": server_ms - total_ms[NO_SERVER],
        "core-ms an image, the load generator": generator_ms,
    }


def draw(path: Path, result: dict[str, Any]) -> None:
    """Draw two stacked bars, core-ms an image: the processes under load, and the steps of the work."""
    import matplotlib as mpl  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    axes, colours = figure.subplots(), iter(mpl.colormaps["tab20"].colors)  # type: ignore[attr-defined]
    ends_ms = dict.fromkeys(BARS, 0.0)
    seen = [row for row in result["summary"] if row["core_ms"] >= LEAST_DRAWN_MS]
    for row, colour in zip(seen, itertools.cycle(colours), strict=False):
        where, core_ms = row["where"], row["core_ms"]
        axes.barh(where, core_ms, BAR, ends_ms[where], color=colour, label=f"{row['target']}, {core_ms:.2f}")
        ends_ms[where] += core_ms
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=f"core-ms an image ({result['images']})")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
