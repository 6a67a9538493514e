"""Stage `scale`: how rate, p99, memory and start grow, and a model of cost that predicts the rate.

The model says how many core-ms an image takes in each kind of process: `TERMS` of the image's size and of the images in
its request. It is fitted to three settings on all cores and predicts the others; where every core is busy, as from
`BUSY` images in flight on, the rate is the cores' time over that sum.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.common.files import replacing
from alexnet_triton.loadtest.bench import bound
from alexnet_triton.loadtest.bench.config import Advance, BenchConfig, describe_images, resized_images
from alexnet_triton.loadtest.bench.peers import BATCH, CORES
from alexnet_triton.loadtest.bench.profile import GENERATOR, measure_processes
from alexnet_triton.loadtest.bench.report import Rows, take_turns
from alexnet_triton.loadtest.bench.servers import TRITON_HEADERS, Triton, triton
from alexnet_triton.loadtest.bench.wrk import Load, http_load, jpeg_load, write_batches
from alexnet_triton.loadtest.variants import edited_copy
from alexnet_triton.serving.engine import MODEL_FILES, fastest_published
from alexnet_triton.serving.repository import Repository

CONNECTIONS, SIZE, REQUEST, USED_CORES, MODELS = AXES = (
    "connections",
    "megapixels",
    "images a request",
    "cores",
    "networks",
)
CONNECTION_COUNTS = (1, 4, 16, 64, 256, 1000)
MEGAPIXELS = (0.1, 0.3, 1.0, 3.0, 12.0)
REQUEST_IMAGES = (1, 2, 4, 8, 16)
CORE_COUNTS = sorted({*(2**power for power in range(CORES.bit_length())), CORES})
NETWORK_COUNTS = (1, 2, 3)
IN_FLIGHT = 64  # images, where their number is not what is varied
BUSY = 2 * BATCH
FITTED = ((CONNECTIONS, IN_FLIGHT), (SIZE, 3.0), (REQUEST, BATCH))
# What each kind of process has to do with: an image, its megabytes, its part of a request. Decoding goes with bytes,
# not with the pixels: most of a large JPEG is decoded at a reduced scale.
DECODER, NETWORK, TRITON = "stub of preprocess", "stub of alexnet", "tritonserver"
TERMS = {DECODER: (0, 1), NETWORK: (0,), TRITON: (1, 2), GENERATOR: (1,)}
OTHERS = (0,)  # the watcher and the supervisor
CORES_TO_COME = (8, 32, 96)
GIGABITS = 10.0  # a second, of a common network card
SHOWN = (
    "target",
    "value",
    "images_per_s",
    "lowest",
    "highest",
    "predicted_per_s",
    "p99_ms",
    "refused",
    "mib",
    "start_s",
)
FIGURES = {"images_per_s": "images/s", "p99_ms": "p99, ms", "mib": "MiB", "start_s": "start, s"}


def measure(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """A row for each setting, medians of the rounds, with what the model predicts; and what more cores would give."""
    folders = {size: resized_images(config, size, advance) for size in MEGAPIXELS}
    targets: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
        CONNECTIONS: partial(_connections, config),
        SIZE: partial(_sizes, config, folders),
        REQUEST: partial(_requests, config),
        USED_CORES: partial(_cores, config),
        MODELS: partial(_networks, config),
    }
    settings = _summarise(take_turns(config, advance, targets))
    advance("the memory's speed")
    memory_gb_per_s = bound.memory_speed(config.seconds / 2)
    model = fit([row for row in settings if (row["target"], row["value"]) in FITTED])
    for row in settings:
        row["predicted_per_s"] = model.rate(row) if row["in_flight"] >= BUSY else ""
    base = next(row for row in settings if (row["target"], row["value"]) == FITTED[0])
    weights_mb = (config.network / MODEL_FILES[fastest_published(config.network)]).stat().st_size / 1e6
    return {
        "settings": settings,
        "summary": [{name: row[name] for name in SHOWN} for row in settings],
        "cost": model.describe(),
        "extrapolated": [extrapolate(model, base, cores, weights_mb) for cores in CORES_TO_COME],
        "memory_gb_per_s": memory_gb_per_s,
        "ratios": _errors(settings),
    }


# ---- what is varied


def _connections(config: BenchConfig) -> Iterator[dict[str, Any]]:
    """A number of callers, who wait after a refusal."""
    with started(config.repository, config) as (server, start_s):
        for count in CONNECTION_COUNTS:
            load = partial(http_load, server.url, count, config.seconds, config.bodies, TRITON_HEADERS, obey=True)
            yield _row(config.bodies, server, start_s, load, count, count)


def _sizes(config: BenchConfig, folders: Mapping[float, Path]) -> Iterator[dict[str, Any]]:
    """The images of `folders`, by their megapixels."""
    with started(config.repository, config) as (server, start_s):
        for size, folder in folders.items():
            jpeg_load(server, IN_FLIGHT, config.warm_up_s, folder)
            load = partial(jpeg_load, server, IN_FLIGHT, config.seconds, folder)
            yield _row(folder, server, start_s, load, size, IN_FLIGHT)


def _requests(config: BenchConfig) -> Iterator[dict[str, Any]]:
    """Several images in a request, as many in flight."""
    images = config.load_images()
    with started(config.repository, config) as (server, start_s):
        for count in REQUEST_IMAGES:
            groups = [(images * 2)[first : first + count] for first in range(len(images))]
            folder, headers = write_batches(config.folder / "requests", groups)
            callers = max(1, IN_FLIGHT // count)
            load = partial(http_load, server.url, callers, config.seconds, folder, headers)
            yield _row(config.bodies, server, start_s, load, count, callers * count, count)


def _cores(config: BenchConfig) -> Iterator[dict[str, Any]]:
    for count in CORE_COUNTS:
        with only_cores(count), started(config.repository, config) as (server, start_s):
            load = partial(jpeg_load, server, IN_FLIGHT, config.seconds, config.bodies)
            yield _row(config.bodies, server, start_s, load, count, IN_FLIGHT, cores=count)


def _networks(config: BenchConfig) -> Iterator[dict[str, Any]]:
    """The network several times under different names, of which one is asked."""
    for count in NETWORK_COUNTS:
        with _copies(config, count) as repository, started(repository, config) as (server, start_s):
            load = partial(jpeg_load, server, IN_FLIGHT, config.seconds, config.bodies)
            yield _row(config.bodies, server, start_s, load, count, IN_FLIGHT)


def _row(
    bodies: Path,
    server: Triton,
    start_s: float,
    load: Callable[[], Load],
    value: float,
    in_flight: int,
    images: int = 1,
    cores: int = CORES,
) -> dict[str, Any]:
    """A setting's figures, with what the model is given of it; `load` counts requests of so many `images`."""
    seen, spent_s = measure_processes(server, load)
    return {
        "value": value,
        "images_per_s": images * seen.images_per_s,
        "p99_ms": seen.p99_ms,
        "refused": seen.refused,
        "mib": _memory_mib(server),
        "start_s": start_s,
        "in_flight": in_flight,
        "cores": cores,
        "images_a_request": images,
        **describe_images(bodies),
        "core_ms": {name: 1e3 * seconds for name, seconds in spent_s.items()},
    }


@contextmanager
def started(repository: Path, config: BenchConfig) -> Iterator[tuple[Triton, float]]:
    """A server that is warm, and the seconds from its start to its first right answer."""
    start = time.perf_counter()
    with triton(repository, config.folder, config.variant) as server:
        start_s = time.perf_counter() - start
        jpeg_load(server, IN_FLIGHT, config.warm_up_s, config.bodies)
        yield server, start_s


@contextmanager
def only_cores(count: int) -> Iterator[None]:
    """Leave this process, and whatever it starts, so many cores."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(usable)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


@contextmanager
def _copies(config: BenchConfig, count: int) -> Iterator[Path]:
    """A repository with so many networks alike, gone afterwards."""
    with edited_copy(config.repository, lambda configs: None, config.variant) as repository:
        network = Repository.open(repository, config.variant).by_source_name["alexnet"]
        version = repository / network.name / config.network.name
        for number in range(2, count + 1):
            name = f"{network.name}-{number}"
            folder = repository / name
            folder.mkdir()
            (folder / version.name).symlink_to(version, target_is_directory=True)
            copied = ModelConfig()
            copied.CopyFrom(network)
            copied.name = name
            (folder / "config.pbtxt").write_text(text_format.MessageToString(copied))
            (folder / "labels.txt").symlink_to(repository / network.name / "labels.txt")
        yield repository


def _memory_mib(server: Triton) -> float:
    """Of all of the server's processes together: each page counts once, shared memory's too. See PSS in proc(5)."""
    total = 0
    for process in server.processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 2**20


def _summarise(rows: Rows) -> Rows:
    """One row for each setting: medians of the rounds."""
    groups: dict[tuple[str, float], Rows] = {}
    for row in rows:
        groups.setdefault((row["target"], row["value"]), []).append(row)
    return [_median_row(group) for group in groups.values()]


def _median_row(group: Rows) -> dict[str, Any]:
    rates = [row["images_per_s"] for row in group]
    numbers = [name for name in group[0] if name not in ("target", "round", "core_ms")]
    kinds = dict.fromkeys(name for row in group for name in row["core_ms"])
    return {
        "target": group[0]["target"],
        **{name: median(row[name] for row in group) for name in numbers},
        "lowest": min(rates),
        "highest": max(rates),
        "core_ms": {name: median(row["core_ms"].get(name, 0.0) for row in group) for name in kinds},
    }


# ---- the model of cost


@dataclass(frozen=True)
class Cost:
    """Core-ms by kind of process: of an image, a megabyte, a request [3]."""

    factors: Mapping[str, np.ndarray]

    def core_ms(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Of an image of a setting, by kind of process."""
        return {kind: float(factors @ _features(row)) for kind, factors in self.factors.items()}

    def rate(self, row: Mapping[str, Any]) -> float:
        """Images a second of a setting where every core is busy."""
        return 1e3 * float(row["cores"]) / sum(self.core_ms(row).values())

    def describe(self) -> Rows:
        """The factors as a table."""
        names = ("an image", "a megabyte", "a request")
        return [
            {"process": kind, **{f"core-ms {name}": float(value) for name, value in zip(names, factors, strict=True)}}
            for kind, factors in self.factors.items()
        ]


def _features(row: Mapping[str, Any]) -> np.ndarray:
    return np.array([1.0, row["megabytes"], 1 / row["images_a_request"]])


def fit(rows: Rows) -> Cost:
    """The factors of `TERMS` that are nearest to these settings' core-ms, by least squares."""
    features, factors = np.array([_features(row) for row in rows]), {}
    for kind in dict.fromkeys(kind for row in rows for kind in row["core_ms"]):
        terms = list(TERMS.get(kind, OTHERS))
        seen = [row["core_ms"].get(kind, 0.0) for row in rows]
        factors[kind] = np.zeros(features.shape[1])
        factors[kind][terms] = np.linalg.lstsq(features[:, terms], np.array(seen), rcond=None)[0]
    return Cost(factors)


def extrapolate(cost: Cost, base: Mapping[str, Any], cores: int, weights_mb: float) -> dict[str, float]:
    """What so many cores would give whose callers have machines of their own; nothing of it is measured.

    Returns:
        Images a second; Triton's cores; gigabits a second that come in, and the cores at which a common network card
        is full; gigabytes a second of weights that batches of `BATCH` read.
    """
    own_ms = cost.core_ms(base)
    image_ms = sum(own_ms.values()) - own_ms.get(GENERATOR, 0.0)
    rate = 1e3 * cores / image_ms
    gigabits = rate * base["megabytes"] * 8 / 1e3
    return {
        "cores": cores,
        "images_per_s": rate,
        "triton_cores": rate * own_ms.get(TRITON, 0.0) / 1e3,
        "gigabits_per_s": gigabits,
        "card_full_at_cores": cores * GIGABITS / gigabits,
        "weights_gb_per_s": rate / BATCH * weights_mb / 1e3,
    }


def _errors(rows: Rows) -> dict[str, float]:
    """By setting that was not fitted, the predicted rate over the measured one."""
    predicted = [row for row in rows if row["predicted_per_s"] and (row["target"], row["value"]) not in FITTED]
    return {
        f"predicted over measured, {row['value']:g} {row['target']}": row["predicted_per_s"] / row["images_per_s"]
        for row in predicted
    }


# ---- the picture


def draw(path: Path, result: dict[str, Any]) -> None:
    """A column for each thing that is varied, a row for each figure; crosses are what the model predicts."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(12, 8), layout="constrained")
    grid = figure.subplots(len(FIGURES), len(AXES), sharey="row", squeeze=False)
    for column, axis in enumerate(AXES):
        rows = sorted((row for row in result["settings"] if row["target"] == axis), key=lambda row: row["value"])
        for line, figure_name in enumerate(FIGURES):
            _draw_line(grid[line][column], rows, figure_name)
        grid[-1][column].set_xlabel(axis)
    for line, label in enumerate(FIGURES.values()):
        grid[line][0].set(ylabel=label, ylim=(0, None))
    figure.suptitle(f"{result['images']}; crosses: predicted by the model of cost", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw_line(axes: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    places = range(len(rows))
    axes.plot(places, [row[name] for row in rows], "o-", color="#0b6e4f", ms=4)
    if name == "images_per_s":
        known = [
            (place, row["predicted_per_s"]) for place, row in zip(places, rows, strict=True) if row["predicted_per_s"]
        ]
        axes.plot([place for place, _ in known], [rate for _, rate in known], "x", color="#d1495b", ms=7)
    axes.set(xticks=list(places), xticklabels=[f"{row['value']:g}" for row in rows])
    axes.spines[["top", "right"]].set_visible(False)
