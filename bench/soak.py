"""Stage `soak`: ten minutes of load, and what it does to the memory of all the server's processes."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from statistics import median
from typing import Any

import psutil

from bench import load
from bench.config import BenchConfig
from bench.servers import TRITON_HEADERS, Triton, triton

CONNECTIONS = 64
SAMPLE_S = 5.0
FROM = 0.2  # of the time: what is touched for the first time has been touched by then


def measure(config: BenchConfig, advance: Callable[[str], None]) -> dict[str, Any]:
    """Resident memory every five seconds; its growth from minute 2 of 10 to the end."""
    samples: list[dict[str, float]] = []
    with triton(config.repository, config.folder) as server, ThreadPoolExecutor(1) as pool:
        run = pool.submit(load.http, server.url, CONNECTIONS, config.soak_s, config.bodies, TRITON_HEADERS)
        started = time.perf_counter()
        while not run.done():
            time.sleep(SAMPLE_S)
            samples.append({"seconds": time.perf_counter() - started, "resident_mib": _resident_mib(server)})
            advance(f"{samples[-1]['seconds']:.0f} of {config.soak_s:.0f} s, {samples[-1]['resident_mib']:.0f} MiB")
    early, late = _around(samples, FROM * config.soak_s), _around(samples, config.soak_s)
    return {
        "rows": samples,
        "seen": asdict(run.result()),
        "resident_mib": {"minute 2": early, "minute 10": late},
        "ratios": {"growth": late / early - 1},
    }


def _resident_mib(server: Triton) -> float:
    """Of `serving run`, the keeper, tritonserver and its stubs; what they share is counted once each."""
    own = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True))) / 2**20


def _around(samples: list[dict[str, float]], second: float) -> float:
    """The median of the six samples nearest to a moment."""
    nearest = sorted(samples, key=lambda sample: abs(sample["seconds"] - second))[:6]
    return median(sample["resident_mib"] for sample in nearest)
