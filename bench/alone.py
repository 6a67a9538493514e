"""Stages `tensors`, `batching` and `single`: this server beside what it is made of."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tritonclient.grpc.model_config_pb2 import ModelConfig

from bench import bound, load
from bench.config import BenchConfig
from bench.grpc_load import grpc, pixels_request
from bench.images import load as load_images
from bench.servers import TRITON_HEADERS, triton
from bench.summary import Rows, summarise
from bench.variants import variant
from imaging import decode
from serving.repository import Repository

CONCURRENT = 64
DIFFERENT = 4  # tensors: what is in them makes no difference, and each is a connection
JPEG, PIXELS = "JPEG, HTTP", "uint8, gRPC"
BATCHING, NO_BATCHING = "batching", "no batching"
Advance = Callable[[str], None]


def measure_tensors(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Uint8 tensors over gRPC, and the engine alone at its best setting, in turn."""
    advance("looking for the engine's best setting")
    setting = bound.best_engine_setting(config.network, config.seconds / 2)
    rows: Rows = []
    with triton(config.repository, config.folder) as server:
        requests = _pixel_requests(config)
        grpc(server.addresses, "alexnet", requests, CONCURRENT, config.warm_up_s)
        for number in range(config.repeats):
            advance(f"round {number + 1} of {config.repeats}")
            alone = bound.network_alone(config.network, setting, config.seconds)
            rows.append({"target": "engine alone", "connections": 0, "round": number, "images_per_s": alone})
            seen = grpc(server.addresses, "alexnet", requests, CONCURRENT, config.seconds)
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


def _under_load(config: BenchConfig, repository: Path) -> Iterator[tuple[str, load.Load]]:
    requests = _pixel_requests(config)
    with triton(repository, config.folder) as server:
        send: dict[str, Callable[[float], load.Load]] = {
            JPEG: lambda seconds: load.http(server.url, CONCURRENT, seconds, config.bodies, TRITON_HEADERS),
            PIXELS: lambda seconds: grpc(server.addresses, "alexnet", requests, CONCURRENT, seconds),
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
        load.http(server.url, 1, config.warm_up_s, config.bodies, TRITON_HEADERS)
        for number in range(config.repeats):
            advance(f"round {number + 1} of {config.repeats}")
            times_ms = bound.one_at_a_time(config.network, config.bodies, config.seconds)
            p50_ms, p99_ms = np.percentile(times_ms, [50, 99])
            alone = {"images_per_s": 1e3 / np.mean(times_ms), "p50_ms": float(p50_ms), "p99_ms": float(p99_ms)}
            rows.append({"target": "decode and network alone", "connections": 0, "round": number, **alone})
            seen = load.http(server.url, 1, config.seconds, config.bodies, TRITON_HEADERS)
            rows.append({"target": "one client, HTTP", "connections": 1, "round": number, **asdict(seen)})
    summary = summarise(rows)
    p50 = {row["target"]: row["p50_ms"] for row in summary}
    added_ms = p50["one client, HTTP"] - p50["decode and network alone"]
    return {"rows": rows, "summary": summary, "ratios": {"ms above decode and network alone": added_ms}}


def _rates(rows: Rows, target: str) -> list[float]:
    return [row["images_per_s"] for row in rows if row["target"] == target]
