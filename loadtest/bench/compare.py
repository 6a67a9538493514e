"""Stages that compare: `served` with the peers and the bound; `tensors`, `batching` and `single` with baselines."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.imaging import decode
from alexnet_triton.loadtest.bench import bound
from alexnet_triton.loadtest.bench.config import BOUND, OURS, OURS_GRPC, Advance, BenchConfig
from alexnet_triton.loadtest.bench.photographs import load_images
from alexnet_triton.loadtest.bench.report import Rows, summarise
from alexnet_triton.loadtest.bench.servers import PEERS, TRITON_HEADERS, peer, triton
from alexnet_triton.loadtest.bench.wrk import Load, grpc_load, http_load, jpeg_load, jpeg_request, pixels_request
from alexnet_triton.loadtest.variants import variant_of
from alexnet_triton.serving.repository import Repository

TARGETS = (BOUND, OURS, *PEERS)
WARM_UP_CONNECTIONS = 16
CONCURRENT = 64
PIXEL_REQUESTS = 4  # different ones, a connection each; what is in the pixels makes no difference
JPEG, PIXELS = "JPEG, HTTP", "uint8, gRPC"
BATCHING, NO_BATCHING = "batching", "no batching"
ENGINE_ALONE, WORK_ALONE, ONE_CLIENT = "engine alone", "decode and network alone", "one client, HTTP"


def measure_served(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """JPEG in, classes out: every target at every number of connections.

    Each target is measured once a round, so that a slow minute of the machine affects all of them.

    Raises:
        BenchError: a target does not start, or a load generator is missing.
    """
    rows: Rows = []
    for number in range(config.repeats):
        for target in config.targets or TARGETS:
            advance(f"{target}, round {number + 1} of {config.repeats}")
            rows += [{"target": target, "round": number, **row} for row in _measure_target(config, target)]
    return {"rows": rows, "summary": summarise(rows), "ratios": served_ratios(rows)}


def _measure_target(config: BenchConfig, target: str) -> Iterator[dict[str, Any]]:
    if target == BOUND:
        rate = bound.decode_and_network(config.network, config.bodies, config.seconds)
        yield {"connections": 0, "images_per_s": rate}
    elif target == OURS:
        yield from _measure_ours(config)
    else:
        with peer(target, config) as url:
            yield from _measure_http(config, url, {})


def _measure_ours(config: BenchConfig) -> Iterator[dict[str, Any]]:
    with triton(config.repository, config.folder) as server:
        yield from _measure_http(config, server.url, TRITON_HEADERS)
        requests = [jpeg_request(body) for body in load_images(config.bodies)]
        for connections in config.connections:
            seen = grpc_load(server, "classify", requests, connections, config.seconds)
            yield {"target": OURS_GRPC, "connections": connections, **asdict(seen)}


def _measure_http(config: BenchConfig, url: str, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    http_load(url, max(WARM_UP_CONNECTIONS, min(config.connections)), config.warm_up_s, config.bodies, headers)
    for connections in config.connections:
        seen = http_load(url, connections, config.seconds, config.bodies, headers)
        yield {"connections": connections, **asdict(seen)}


def served_ratios(rows: Rows, connections: int = CONCURRENT) -> dict[str, float]:
    """This server over HTTP as a fraction of the bound, and as a multiple of the best peer with the same engine."""
    rates = {row["target"]: row["images_per_s"] for row in summarise(rows) if row["connections"] in (0, connections)}
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
    setting = bound.best_engine_setting(config.network, config.seconds / 2)
    rows: Rows = []
    with triton(config.repository, config.folder) as server:
        requests = _pixel_requests(config)
        grpc_load(server, "alexnet", requests, CONCURRENT, config.warm_up_s)
        for number in range(config.repeats):
            advance(f"round {number + 1} of {config.repeats}")
            alone = bound.network_alone(config.network, setting, config.seconds)
            rows.append({"target": ENGINE_ALONE, "connections": 0, "round": number, "images_per_s": alone})
            seen = grpc_load(server, "alexnet", requests, CONCURRENT, config.seconds)
            rows.append({"target": PIXELS, "connections": CONCURRENT, "round": number, **asdict(seen)})
    summary = summarise(rows)
    rates = {row["target"]: row["images_per_s"] for row in summary}
    ratios = {"of the engine alone": rates[PIXELS] / rates[ENGINE_ALONE]}
    return {"engine": asdict(setting), "rows": rows, "summary": summary, "ratios": ratios}


def _pixel_requests(config: BenchConfig) -> list[bytes]:
    size = Repository.open(config.repository, "cpu").configs["alexnet"].input[0].dims[0]
    return [pixels_request(decode(body, size)) for body in load_images(config.bodies)[:PIXEL_REQUESTS]]


def measure_batching(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """The same configuration with dynamic batching and without it, in turn: JPEGs, and pixels for the network alone."""
    rows: Rows = []
    with variant_of(config.repository, {"batching": "off"}) as unbatched:
        for number in range(config.repeats):
            for target, repository in ((BATCHING, config.repository), (NO_BATCHING, unbatched)):
                advance(f"{target}, round {number + 1} of {config.repeats}")
                for kind, seen in _load_both(config, repository):
                    name = f"{kind}, {target}"
                    rows.append({"target": name, "connections": CONCURRENT, "round": number, **asdict(seen)})
    summary = summarise(rows)
    return {"rows": rows, "summary": summary, "ratios": _batching_ratios(summary)}


def _load_both(config: BenchConfig, repository: Path) -> Iterator[tuple[str, Load]]:
    requests = _pixel_requests(config)
    with triton(repository, config.folder) as server:
        send: dict[str, Callable[[float], Load]] = {
            JPEG: lambda seconds: jpeg_load(server, CONCURRENT, seconds, config.bodies),
            PIXELS: lambda seconds: grpc_load(server, "alexnet", requests, CONCURRENT, seconds),
        }
        for kind, load in send.items():
            load(config.warm_up_s)
            yield kind, load(config.seconds)


def _batching_ratios(summary: Rows) -> dict[str, float]:
    seen = {row["target"]: row for row in summary}
    ratios = {}
    for kind in (JPEG, PIXELS):
        batched, single = (seen[f"{kind}, {target}"] for target in (BATCHING, NO_BATCHING))
        ratios[f"{kind}: times the rate without batching"] = batched["images_per_s"] / single["images_per_s"]
        ratios[f"{kind}: of the p99 without batching"] = batched["p99_ms"] / single["p99_ms"]
    return ratios


def measure_single(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """One client that sends one request after another and, in turn, the same work without a server."""
    rows: Rows = []
    with triton(config.repository, config.folder) as server:
        jpeg_load(server, 1, config.warm_up_s, config.bodies)
        for number in range(config.repeats):
            advance(f"round {number + 1} of {config.repeats}")
            times_ms = bound.one_at_a_time(config.network, config.bodies, config.seconds)
            p50_ms, p99_ms = map(float, np.percentile(times_ms, [50, 99]))
            alone = Load(float(1e3 / np.mean(times_ms)), p50_ms, p99_ms)
            rows.append({"target": WORK_ALONE, "connections": 0, "round": number, **asdict(alone)})
            seen = jpeg_load(server, 1, config.seconds, config.bodies)
            rows.append({"target": ONE_CLIENT, "connections": 1, "round": number, **asdict(seen)})
    summary = summarise(rows)
    p50 = {row["target"]: row["p50_ms"] for row in summary}
    ratios = {"ms above decode and network alone": p50[ONE_CLIENT] - p50[WORK_ALONE]}
    return {"rows": rows, "summary": summary, "ratios": ratios}
