"""Stages that compare: `served` with peers and the bound, `overload` with the sustained rate, others with baselines."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from alexnet_triton.client.config import Config
from alexnet_triton.imaging import decode
from alexnet_triton.loadtest.bench import bound
from alexnet_triton.loadtest.bench.config import BOUND, OURS, OURS_GRPC, ROOT, Advance, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.report import Rows, build_result, medians, summarise, take_turns
from alexnet_triton.loadtest.bench.servers import (
    PEERS,
    TRITON_HEADERS,
    VARIED,
    Triton,
    peer,
    read_peer_settings,
    triton,
)
from alexnet_triton.loadtest.bench.wrk import Load, grpc_load, http_load, jpeg_load, jpeg_request, pixels_request
from alexnet_triton.loadtest.measure import Measured, Setup, measure_in_process
from alexnet_triton.loadtest.recorder import Times
from alexnet_triton.loadtest.variants import variant_of
from alexnet_triton.loadtest.workload import Plan, Users
from alexnet_triton.serving.errors import ControlError

TARGETS = (BOUND, OURS, *PEERS)
WARM_UP_CONNECTIONS = 16
CONCURRENT = 64
PIXEL_REQUESTS = 4  # different ones, a connection each; what is in the pixels makes no difference
JPEG, PIXELS = "JPEG, HTTP", "uint8, gRPC"
BATCHING, NO_BATCHING = "batching", "no batching"
ENGINE_ALONE, WORK_ALONE, ONE_CLIENT = "engine alone", "decode and network alone", "one client, HTTP"
GENERATOR = "load generator, HTTP"
COMMANDS = {"client/classify.py, gRPC": "grpc", "client/classify.py, HTTP": "http"}
COMMAND_CONCURRENCY = 32


def measure_served(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """JPEG in, classes out: every target at every number of connections."""
    targets = {target: partial(measure_target, config, target) for target in config.targets or TARGETS}
    rows = take_turns(config, advance, targets)
    settings = read_peer_settings(config)
    peers = {name: settings[name].describe(VARIED[name]) for name in targets if name in PEERS}
    return {**({"peers": peers} if peers else {}), **_energy(config), **build_result(rows, _served_ratios(rows))}


def _row(config: BenchConfig, load: Callable[[], Load]) -> dict[str, Any]:
    """A load's figures, with images a joule where the network is on a GPU that counts its energy."""
    read_joules, _ = bound.find_energy_meter() if config.on_gpu else (None, "")
    measure = partial(_as_row, load)
    return bound.measure_energy(measure, read_joules) if read_joules else measure()


def _as_row(load: Callable[[], Load]) -> dict[str, Any]:
    return asdict(load())


def _energy(config: BenchConfig) -> dict[str, str]:
    """What the images a joule are of, or why there are none; nothing where no GPU is measured."""
    return {"energy": bound.find_energy_meter()[1]} if config.on_gpu else {}


def measure_target(config: BenchConfig, target: str) -> Iterator[dict[str, Any]]:
    """A row of `served` for each number of connections; a server is started for them."""
    if target == BOUND:
        yield {"connections": 0, "images_per_s": bound.decode_and_network(config)}
    elif target == OURS:
        yield from _measure_ours(config)
    else:
        with peer(target, config) as url:
            yield from _measure_http(config, url, {})


def _measure_ours(config: BenchConfig) -> Iterator[dict[str, Any]]:
    with triton(config.repository, config.folder, config.variant) as server:
        yield from _measure_http(config, server.url, TRITON_HEADERS)
        requests = [jpeg_request([body]) for body in config.load_images()]
        for connections in config.connections:
            load = partial(grpc_load, server, "classify", requests, connections, config.seconds)
            yield {"target": OURS_GRPC, **_row(config, load)}


def _measure_http(config: BenchConfig, url: str, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    http_load(url, max(WARM_UP_CONNECTIONS, min(config.connections)), config.warm_up_s, config.bodies, headers)
    for connections in config.connections:
        yield _row(config, partial(http_load, url, connections, config.seconds, config.bodies, headers))


def _served_ratios(rows: Rows) -> dict[str, float]:
    """This server over HTTP as a fraction of the bound, and as a multiple of the best peer with the same engine."""
    rates = {row["target"]: row["images_per_s"] for row in summarise(rows) if row["connections"] in (0, CONCURRENT)}
    peers = {name: rate for name, rate in rates.items() if name in PEERS and not name.endswith("fp32")}
    found = {}
    if OURS in rates and BOUND in rates:
        found["of the bound"] = rates[OURS] / rates[BOUND]
    if OURS in rates and peers:
        best = max(peers, key=lambda name: peers[name])
        found[f"times {best}, the best peer"] = rates[OURS] / peers[best]
    return found


def measure_tensors(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Uint8 tensors over gRPC and, in turn, the engine without a server at its best setting."""
    advance("looking for the engine's best setting")
    setting = bound.best_engine_setting(config)

    def measure_engine() -> Rows:
        return [{"connections": 0, "images_per_s": bound.network_alone(config, setting, config.seconds)}]

    with triton(config.repository, config.folder, config.variant) as server:
        load = partial(grpc_load, server, config.network_config.name, _pixel_requests(config), CONCURRENT)
        load(config.warm_up_s)
        targets = {ENGINE_ALONE: measure_engine, PIXELS: lambda: [_row(config, partial(load, config.seconds))]}
        rows = take_turns(config, advance, targets)
    rates = medians(rows, "images_per_s")
    ratios = {"of the engine alone": rates[PIXELS] / rates[ENGINE_ALONE]}
    return {"engine": asdict(setting), **_energy(config), **build_result(rows, ratios)}


def _pixel_requests(config: BenchConfig) -> list[bytes]:
    network = config.network_config
    pixels = [decode(body, network.input[0].dims[0]) for body in config.load_images()[:PIXEL_REQUESTS]]
    return [pixels_request(network.name, each) for each in pixels]


def measure_batching(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """The same configuration with dynamic batching and without it, in turn: JPEGs, and pixels for the network alone."""
    with variant_of(config.repository, {"batching": "off"}, config.variant) as unbatched:
        repositories = {BATCHING: config.repository, NO_BATCHING: unbatched}
        targets = {name: partial(_load_both, config, path, name) for name, path in repositories.items()}
        rows = take_turns(config, advance, targets)
    return {**_energy(config), **build_result(rows, _batching_ratios(rows))}


def _load_both(config: BenchConfig, repository: Path, name: str) -> Iterator[dict[str, Any]]:
    requests, network = _pixel_requests(config), config.network_config.name
    with triton(repository, config.folder, config.variant) as server:
        send: dict[str, Callable[[float], Load]] = {
            JPEG: lambda seconds: jpeg_load(server, CONCURRENT, seconds, config.bodies),
            PIXELS: lambda seconds: grpc_load(server, network, requests, CONCURRENT, seconds),
        }
        for kind, load in send.items():
            load(config.warm_up_s)
            yield {"target": f"{kind}, {name}", **_row(config, partial(load, config.seconds))}


def _batching_ratios(rows: Rows) -> dict[str, float]:
    rates, p99_ms = medians(rows, "images_per_s"), medians(rows, "p99_ms")
    ratios = {}
    for kind in (JPEG, PIXELS):
        batched, single = f"{kind}, {BATCHING}", f"{kind}, {NO_BATCHING}"
        ratios[f"{kind}: times the rate without batching"] = rates[batched] / rates[single]
        ratios[f"{kind}: of the p99 without batching"] = p99_ms[batched] / p99_ms[single]
    return ratios


def measure_single(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """One client that sends one request after another and, in turn, the same work without a server."""

    def measure_work() -> Rows:
        times_ms = bound.one_at_a_time(config)
        p50_ms, p99_ms = map(float, np.percentile(times_ms, [50, 99]))
        return [asdict(Load(0, float(1e3 / np.mean(times_ms)), p50_ms, p99_ms))]

    with triton(config.repository, config.folder, config.variant) as server:
        jpeg_load(server, 1, config.warm_up_s, config.bodies)
        client = partial(jpeg_load, server, 1, config.seconds, config.bodies)
        rows = take_turns(config, advance, {WORK_ALONE: measure_work, ONE_CLIENT: lambda: [asdict(client())]})
    p50_ms = medians(rows, "p50_ms")
    return build_result(rows, {"ms above decode and network alone": p50_ms[ONE_CLIENT] - p50_ms[WORK_ALONE]})


def measure_client(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """A folder through `client/classify.py`, from its start to its end, and, in turn, the load generator.

    Raises:
        BenchError: the command did not classify every image.
    """
    with (
        tempfile.TemporaryDirectory(dir=config.folder) as folder,
        triton(config.repository, config.folder, config.variant) as server,
    ):
        _link_images(config, Path(folder))
        jpeg_load(server, CONCURRENT, config.warm_up_s, config.bodies)
        generator = partial(jpeg_load, server, CONCURRENT, config.seconds, config.bodies)
        commands = {name: partial(_classify, server, scheme, folder, config) for name, scheme in COMMANDS.items()}
        rows = take_turns(config, advance, {GENERATOR: lambda: [asdict(generator())], **commands})
    rates = medians(rows, "images_per_s")
    return build_result(rows, {f"{name}, of the load generator": rates[name] / rates[GENERATOR] for name in COMMANDS})


def _link_images(config: BenchConfig, folder: Path) -> None:
    """Fill the folder with `client_images` files: links to the JPEGs, which take no room."""
    bodies = sorted(config.bodies.glob("*.jpg"))
    for number in range(config.client_images):
        os.link(bodies[number % len(bodies)], folder / f"{number:06}.jpg")


def _classify(server: Triton, scheme: str, folder: str, config: BenchConfig) -> Rows:
    address = server.grpc if scheme == "grpc" else server.http
    output = config.folder / "client.jsonl"
    command = [sys.executable, str(ROOT / "client" / "classify.py"), "--recursive", folder, "--output", str(output)]
    command += ["--url", f"{scheme}://{address}", "--concurrency", str(COMMAND_CONCURRENCY)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    with process.stderr:
        complaints = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode, elapsed_s = os.waitstatus_to_exitcode(status), time.perf_counter() - started
    answered = output.read_bytes().count(b'"top"')
    if process.returncode or answered != config.client_images:
        raise BenchError(f"{answered} of {config.client_images} images classified: {complaints[-300:].strip()}")
    cpu_s = usage.ru_utime + usage.ru_stime
    figures = {"cpu_ms_an_image": 1e3 * cpu_s / answered, "peak_mib": usage.ru_maxrss / 1024}
    return [{"connections": COMMAND_CONCURRENCY, "images_per_s": answered / elapsed_s, **figures}]


# ---- more than the server can do

CONNECTIONS = 64  # give the sustained rate
OVERLOAD = 2.0  # times the sustained rate
OVERLOAD_CONNECTIONS, OVERLOAD_TIMEOUT_S = 2048, 15.0
NORMAL_IN_A_ROW, NORMAL_TIMEOUT_S = 10, 60.0
REFUSED = "HTTP 503"


def measure_overload(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Twice the sustained rate from clients that do not wait, and the time until single requests are fast again.

    The same load generator finds the sustained rate: it runs on the server's cores, so another one's cost differs. It
    does so before and after, as the speed of a shared machine's cores changes by a fifth over these minutes. Where it
    has to be `apart`, the last core is its own, and the server has the others.
    """
    with (
        _cores_of_the_server(config.apart) as cores,
        triton(config.repository, config.folder, config.variant, cores=cores) as server,
    ):
        jpeg_load(server, CONNECTIONS, config.warm_up_s, config.bodies)
        advance("the sustained rate")
        target = Config(urls=(f"http://{server.http}",))
        users = Setup(Users(CONNECTIONS, config.seconds), connections=CONNECTIONS, timeout_s=OVERLOAD_TIMEOUT_S)
        sustained = partial(measure_in_process, target, config.bodies, users)
        rounds = [sustained() for _ in range(config.repeats)]
        peak = median(_rates(rounds))
        before_ms = jpeg_load(server, 1, config.seconds / 2, config.bodies).p99_ms
        advance(f"{OVERLOAD * peak:.0f} requests a second for {config.overload_s:g} s")
        load = Plan(OVERLOAD * peak, config.overload_s, arrivals="poisson")
        setup = Setup(load, connections=OVERLOAD_CONNECTIONS, timeout_s=OVERLOAD_TIMEOUT_S)
        measured = measure_in_process(target, config.bodies, setup)
        normal_s = _time_to_normal(server, config.load_images()[0], 2 * before_ms)
        advance("the sustained rate, again")
        rounds += [sustained() for _ in range(config.repeats)]
        events = server.events
    generator = {"sustained": rounds[-1].generator.cores, "overload": measured.generator.cores}
    figures = {"sustained_per_s": _rates(rounds), "server_cores": len(cores), "generator_cores": generator}
    return {**figures, **_evaluate(measured, median(_rates(rounds))), "normal_after_s": normal_s, "events": events}


def _rates(rounds: Iterable[Measured]) -> list[float]:
    return [each.right / each.seconds for each in rounds]


@contextmanager
def _cores_of_the_server(apart: bool) -> Iterator[list[int]]:
    """The cores that the server is to have. Apart from it, this process and what else it starts have the last alone.

    Raises:
        BenchError: there is one core alone.
    """
    usable = sorted(os.sched_getaffinity(0))
    if not apart:
        yield usable
        return
    if len(usable) < 2:
        raise BenchError("--apart needs two cores, and this process may use one")
    os.sched_setaffinity(0, usable[-1:])
    try:
        yield usable[:-1]
    finally:
        os.sched_setaffinity(0, usable)


def _evaluate(measured: Measured, peak: float) -> dict[str, Any]:
    refused = sum(failure.count for failure in measured.failures if failure.name == REFUSED)
    rate = measured.right / measured.seconds
    return {
        "offered_per_s": measured.sent / measured.seconds,
        "answered_per_s": rate,
        "refused": refused,
        "other": {failure.name: failure.count for failure in measured.failures if failure.name != REFUSED},
        "answered_ms": _percentiles(measured.latency),
        "refused_ms": _percentiles(measured.refusals),
        "ratios": {"of the sustained rate": rate / peak},
    }


def _percentiles(times: Times) -> dict[str, float]:
    return {"p50": times.p50_ms, "p99": times.p99_ms, "max": times.max_ms} if times.count else {}


def _time_to_normal(server: Triton, body: bytes, limit_ms: float) -> float:
    """Seconds until ten requests in a row are answered, each within `limit_ms`.

    Raises:
        BenchError: it takes more than a minute.
    """
    control, started, in_a_row = server.control, time.perf_counter(), 0
    while in_a_row < NORMAL_IN_A_ROW:
        if time.perf_counter() - started > NORMAL_TIMEOUT_S:
            raise BenchError(f"single requests still take more than {limit_ms:.0f} ms a minute after the overload")
        before = time.perf_counter()
        try:
            control.classify(body)
        except ControlError:
            in_a_row = 0
            continue
        in_a_row = in_a_row + 1 if (time.perf_counter() - before) * 1e3 <= limit_ms else 0
    return time.perf_counter() - started
