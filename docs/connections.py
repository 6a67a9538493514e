"""Whether many callers, and callers of many images, get the rate that 64 callers of one image get.

    python docs/connections.py --repository artifacts/model_repository --connections 64 256 1000 --target LitServe

Options, table and JSON are those of `alexnet-triton bench`.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from alexnet_triton.loadtest.bench import cli
from alexnet_triton.loadtest.bench.compare import CONCURRENT, measure_target
from alexnet_triton.loadtest.bench.config import OURS, OURS_GRPC, ROOT, Advance, BenchConfig
from alexnet_triton.loadtest.bench.gateway import Gateway, running_gateway
from alexnet_triton.loadtest.bench.peers import BATCH
from alexnet_triton.loadtest.bench.report import Rows, build_result, take_turns
from alexnet_triton.loadtest.bench.servers import TRITON_HEADERS, TRITON_PATH, Triton, triton
from alexnet_triton.loadtest.bench.wrk import Load, grpc_load, http_load, jpeg_load, jpeg_request, write_batches

KEYS = 8  # of callers through the gateway
THROUGH, OBEYING = f"the gateway, {KEYS} keys", f"{OURS}, obeying"
BATCHES, BATCHES_GRPC = f"{OURS}, {BATCH} images", f"{OURS_GRPC}, {BATCH} images"
BATCHES_OBEYING = f"{BATCHES}, obeying"
# What a row is compared with; one that is not here is compared with itself.
BASES = {THROUGH: OURS, OBEYING: OURS, BATCHES: OURS, BATCHES_OBEYING: OURS, BATCHES_GRPC: OURS_GRPC}
Loads = Callable[[], Iterable[Load]]


def measure_connections(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Every number of connections over HTTP, gRPC and through the gateway, 64 callers of 16 images, and named peers.

    The gateway has its default limits. Its callers and those called obeying wait after a refusal; all others insist.
    """
    _make_keys(config.folder / "gateway" / "keys")
    with (
        triton(config.repository, config.folder) as server,
        running_gateway(server.http, server.grpc, config.folder, limits={}) as gateway,
    ):
        jpeg_load(server, CONCURRENT, config.warm_up_s, config.bodies)
        loads = {name: partial(_rows, each) for name, each in _loads(config, server, gateway).items()}
        peers = {name: partial(measure_target, config, name) for name in config.targets}
        rows = take_turns(config, advance, {**loads, **peers})
    return build_result(rows, _ratios(rows))


def _make_keys(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    for number in range(KEYS):
        words = [ROOT / "docker/key.sh", "me" if number == 0 else f"caller-{number}"]
        subprocess.run(words, env={**os.environ, "GATEWAY_KEYS": str(file)}, stdout=subprocess.DEVNULL, check=True)


def _loads(config: BenchConfig, server: Triton, gateway: Gateway) -> dict[str, Loads]:
    images = config.load_images()
    groups = [(images * 2)[first : first + BATCH] for first in range(len(images))]
    folder, headers = write_batches(config.folder / "batches", groups)
    singles, batches = ([jpeg_request(each) for each in requests] for requests in ([[one] for one in images], groups))
    numbers, seconds, url = config.connections, config.seconds, f"{gateway.url}{TRITON_PATH}"

    def obeying(address: str, count: int, keys: Sequence[str] = ()) -> Load:
        return http_load(address, count, seconds, config.bodies, TRITON_HEADERS, keys, obey=True)

    def in_batches(obey: bool) -> Load:
        seen = http_load(server.url, CONCURRENT, seconds, folder, headers, obey=obey)
        return replace(seen, images_per_s=BATCH * seen.images_per_s)

    return {
        OURS: lambda: (jpeg_load(server, each, seconds, config.bodies) for each in numbers),
        OBEYING: lambda: (obeying(server.url, each) for each in numbers),
        THROUGH: lambda: (obeying(url, each, gateway.keys) for each in numbers),
        OURS_GRPC: lambda: (grpc_load(server, "classify", singles, each, seconds) for each in numbers),
        BATCHES: lambda: [in_batches(obey=False)],
        BATCHES_OBEYING: lambda: [in_batches(obey=True)],
        BATCHES_GRPC: lambda: [grpc_load(server, "classify", batches, CONCURRENT, seconds)],
    }


def _rows(loads: Loads) -> Rows:
    return [asdict(each) for each in loads()]


def _ratios(rows: Rows) -> dict[str, float]:
    """Of each row the median over the rounds of its rate, as a fraction of the protocol's at 64 connections."""
    rates = {(row["target"], row["connections"], row["round"]): row["images_per_s"] for row in rows}
    found: dict[str, list[float]] = {}
    for (target, connections, number), rate in rates.items():
        base = BASES.get(target, target)
        if at_64 := rates.get((base, CONCURRENT, number)):
            found.setdefault(f"of {base} at 64: {target} at {connections}", []).append(rate / at_64)
    return {name: median(ratios) for name, ratios in found.items()}


if __name__ == "__main__":
    cli.STAGES["connections"] = measure_connections
    sys.exit(cli.main(["connections", *sys.argv[1:]]))
