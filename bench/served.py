"""Stage `served`: JPEG in, classes out, of this server and its peers, beside the bound of the machine."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from bench import bound, load
from bench.config import BenchConfig
from bench.grpc_load import grpc, jpeg_request
from bench.images import load as load_images
from bench.servers import PEERS, TRITON_HEADERS, peer, triton
from bench.summary import Rows, summarise

OURS, OURS_GRPC, BOUND = "this server, HTTP", "this server, gRPC", "bound, no server"
TARGETS = (BOUND, OURS, *PEERS)
Advance = Callable[[str], None]


def measure(config: BenchConfig, advance: Advance) -> dict[str, Any]:
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
            seen = grpc(server.addresses, "classify", requests, connections, config.seconds)
            yield {"target": OURS_GRPC, "connections": connections, **asdict(seen)}


def _measure_http(config: BenchConfig, url: str, headers: dict[str, str]) -> Iterator[dict[str, Any]]:
    load.http(url, max(16, min(config.connections)), config.warm_up_s, config.bodies, headers)
    for connections in config.connections:
        seen = load.http(url, connections, config.seconds, config.bodies, headers)
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
