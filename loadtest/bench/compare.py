"""Stages `tensors`, `batching` and `single`: this server beside what it is made of."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.imaging import decode
from alexnet_triton.loadtest.bench import bound, wrk
from alexnet_triton.loadtest.bench.config import BOUND, OURS, OURS_GRPC, BenchConfig
from alexnet_triton.loadtest.bench.photographs import load_images as load_images
from alexnet_triton.loadtest.bench.report import Rows, summarise
from alexnet_triton.loadtest.bench.servers import PEERS, TRITON_HEADERS, peer, triton
from alexnet_triton.loadtest.bench.variants import variant
from alexnet_triton.loadtest.bench.wrk import grpc_load, jpeg_request, pixels_request
from alexnet_triton.serving.repository import Repository

# WAS alexnet_triton.loadtest.bench.compare: Stage `served`: JPEG in, classes out, of this server and its peers, beside the bound of the machine.


TARGETS = (BOUND, OURS, *PEERS)
Advance = Callable[[str], None]


def measure_served(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Every target at every number of connections, once a round, so that a slow minute is everybody's.

    Raises:
        BenchError: a target does not start, or a load generator is missing.
    """
    rows: Rows = []
    for round_number in range(config.repeats):
        for target in config.targets or TARGETS:
            advance(f"{target}, round {round_number + 1} of {config.repeats}")
            rows += [{"target": target, "round": round_number, **row} for row in _measure_target(config, target)]
    return {"rows": rows, "summary": summarise(rows), "ratios": ratios(rows)}


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
            seen = grpc_load(server.addresses, "classify", requests, connections, config.seconds)
            yield {"target": OURS_GRPC, "connections": connections, **asdict(seen)}


def _measure_http(config: BenchConfig, url: str, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    wrk.http_load(url, max(16, min(config.connections)), config.warm_up_s, config.bodies, headers)
    for connections in config.connections:
        seen = wrk.http_load(url, connections, config.seconds, config.bodies, headers)
        yield {"connections": connections, **asdict(seen)}


def ratios(rows: Rows, connections: int = 64) -> dict[str, float]:
    """What is claimed: this server over HTTP beside the bound, and beside the best peer with the same engine."""
    rates = {row["target"]: row["images_per_s"] for row in summarise(rows) if row["connections"] in (0, connections)}
    peers = {name: rate for name, rate in rates.items() if name in PEERS and not name.endswith("fp32")}
    found = {}
    if OURS in rates and BOUND in rates:
        found["of the bound"] = rates[OURS] / rates[BOUND]
    if OURS in rates and peers:
        best = max(peers, key=lambda name: peers[name])
        found[f"times {best}, the best peer"] = rates[OURS] / peers[best]
    return found


CONCURRENT = 64
DIFFERENT = 4  # tensors: what is in them makes no difference, and each is a connection
JPEG, PIXELS = "JPEG, HTTP", "uint8, gRPC"
BATCHING, NO_BATCHING = "batching", "no batching"


def measure_tensors(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Uint8 tensors over gRPC, and the engine alone at its best setting, in turn."""
    advance("looking for the engine's best setting")
    setting = bound.best_engine_setting(config.network, config.seconds / 2)
    rows: Rows = []
    with triton(config.repository, config.folder) as server:
        requests = _pixel_requests(config)
        grpc_load(server.addresses, "alexnet", requests, CONCURRENT, config.warm_up_s)
        for number in range(config.repeats):
            advance(f"round {number + 1} of {config.repeats}")
            alone = bound.network_alone(config.network, setting, config.seconds)
            rows.append({"target": "engine alone", "connections": 0, "round": number, "images_per_s": alone})
            seen = grpc_load(server.addresses, "alexnet", requests, CONCURRENT, config.seconds)
            rows.append({"target": PIXELS, "connections": CONCURRENT, "round": number, **asdict(seen)})
    without, served = _rates(rows, "engine alone"), _rates(rows, PIXELS)
    return {
        "engine": asdict(setting),
        "rows": rows,
        "summary": summarise(rows),
        "ratios": {"of the engine alone": median(served) / median(without)},
    }


def _pixel_requests(config: BenchConfig) -> list[bytes]:
    size = Repository.open(config.repository, "cpu").configs["alexnet"].input[0].dims[0]
    return [pixels_request(decode(body, size)) for body in load_images(config.bodies)[:DIFFERENT]]


def measure_batching(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """The same configuration with dynamic batching and without, in turn: JPEGs, and the network by itself."""
    rows: Rows = []
    with variant(config.repository, config.folder / "unbatched", _without_batching) as unbatched:
        for number in range(config.repeats):
            for target, repository in ((BATCHING, config.repository), (NO_BATCHING, unbatched)):
                advance(f"{target}, round {number + 1} of {config.repeats}")
                for kind, seen in _under_load(config, repository):
                    name = f"{kind}, {target}"
                    rows.append({"target": name, "connections": CONCURRENT, "round": number, **asdict(seen)})
    ratios = [_batching_ratios(rows, kind) for kind in (JPEG, PIXELS)]
    return {"rows": rows, "summary": summarise(rows), "ratios": ratios[0] | ratios[1]}


def _under_load(config: BenchConfig, repository: Path) -> Iterator[tuple[str, wrk.Load]]:
    requests = _pixel_requests(config)
    with triton(repository, config.folder) as server:
        send: dict[str, Callable[[float], wrk.Load]] = {
            JPEG: lambda seconds: wrk.http_load(server.url, CONCURRENT, seconds, config.bodies, TRITON_HEADERS),
            PIXELS: lambda seconds: grpc_load(server.addresses, "alexnet", requests, CONCURRENT, seconds),
        }
        for kind, one in send.items():
            one(config.warm_up_s)
            yield kind, one(config.seconds)


def _batching_ratios(rows: Rows, kind: str) -> dict[str, float]:
    p99_ms = {
        target: median(row["p99_ms"] for row in rows if row["target"] == f"{kind}, {target}")
        for target in (BATCHING, NO_BATCHING)
    }
    rates = {target: median(_rates(rows, f"{kind}, {target}")) for target in (BATCHING, NO_BATCHING)}
    return {
        f"{kind}: times the rate without batching": rates[BATCHING] / rates[NO_BATCHING],
        f"{kind}: of the p99 without batching": p99_ms[BATCHING] / p99_ms[NO_BATCHING],
    }


def _without_batching(config: ModelConfig) -> None:
    config.ClearField("dynamic_batching")


def measure_single(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """One client, one request after another, and the same work without a server, in turn."""
    rows: Rows = []
    with triton(config.repository, config.folder) as server:
        wrk.http_load(server.url, 1, config.warm_up_s, config.bodies, TRITON_HEADERS)
        for number in range(config.repeats):
            advance(f"round {number + 1} of {config.repeats}")
            times_ms = bound.one_at_a_time(config.network, config.bodies, config.seconds)
            p50_ms, p99_ms = np.percentile(times_ms, [50, 99])
            alone = {"images_per_s": 1e3 / np.mean(times_ms), "p50_ms": float(p50_ms), "p99_ms": float(p99_ms)}
            rows.append({"target": "decode and network alone", "connections": 0, "round": number, **alone})
            seen = wrk.http_load(server.url, 1, config.seconds, config.bodies, TRITON_HEADERS)
            rows.append({"target": "one client, HTTP", "connections": 1, "round": number, **asdict(seen)})
    summary = summarise(rows)
    p50 = {row["target"]: row["p50_ms"] for row in summary}
    added_ms = p50["one client, HTTP"] - p50["decode and network alone"]
    return {"rows": rows, "summary": summary, "ratios": {"ms above decode and network alone": added_ms}}


def _rates(rows: Rows, target: str) -> list[float]:
    return [row["images_per_s"] for row in rows if row["target"] == target]
