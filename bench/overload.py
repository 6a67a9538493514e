"""Stage `overload`: twice the rate that the server sustains, from callers that do not wait."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from bench import load, open_loop
from bench.config import BenchConfig
from bench.errors import BenchError
from bench.images import load as load_images
from bench.servers import TRITON_HEADERS, Triton, triton
from serving.control import Control
from serving.errors import ControlError

TIMES = 2.0
SATURATING = 64  # connections that give the sustained rate
NORMAL_IN_A_ROW = 10
OK, REFUSED = 200, 503


def measure(config: BenchConfig, advance: Callable[[str], None]) -> dict[str, Any]:
    """The sustained rate; twice that, open loop; how long until single requests are answered as before."""
    with triton(config.repository, config.folder) as server:
        load.http(server.url, SATURATING, config.warm_up_s, config.bodies, TRITON_HEADERS)
        advance("the sustained rate")
        peaks = [
            load.http(server.url, SATURATING, config.seconds, config.bodies, TRITON_HEADERS).images_per_s
            for _ in range(config.repeats)
        ]
        peak = median(peaks)
        before_ms = load.http(server.url, 1, config.seconds / 2, config.bodies, TRITON_HEADERS).p99_ms
        advance(f"{TIMES * peak:.0f} requests a second for {config.overload_s:g} s")
        answers = open_loop.send(server.addresses.http, config.bodies, TIMES * peak, config.overload_s)
        normal_s = _time_to_normal(server, load_images(config.bodies)[0], 2 * before_ms)
    return {"sustained_per_s": peaks, **_evaluate(answers, peak, config.overload_s), "normal_after_s": normal_s}


def _evaluate(answers: open_loop.Answers, peak: float, seconds: float) -> dict[str, Any]:
    good, refused = answers.status == OK, answers.status == REFUSED
    other = ~good & ~refused
    rate = float(good.sum() / seconds)
    found = {
        "offered_per_s": len(answers.status) / seconds,
        "answered_per_s": rate,
        "refused": int(refused.sum()),
        "other": int(other.sum()),
        "answered_ms": _percentiles(answers.times_ms[good]),
        "refused_ms": _percentiles(answers.times_ms[refused]),
    }
    return {**found, "ratios": {"of the sustained rate": rate / peak}}


def _percentiles(times_ms: np.ndarray) -> dict[str, float]:
    if not len(times_ms):
        return {}
    return {name: float(np.percentile(times_ms, at)) for name, at in (("p50", 50), ("p99", 99), ("max", 100))}


def _time_to_normal(server: Triton, body: bytes, limit_ms: float) -> float:
    """Seconds until ten requests in a row are answered, each within `limit_ms`.

    Raises:
        BenchError: not within a minute.
    """
    host, _, port = server.addresses.http.rpartition(":")
    control, started, in_a_row = Control(host, int(port)), time.perf_counter(), 0
    while in_a_row < NORMAL_IN_A_ROW:
        if time.perf_counter() - started > 60:
            raise BenchError(f"single requests still take more than {limit_ms:.0f} ms a minute after the overload")
        before = time.perf_counter()
        try:
            control.classify(body)
        except ControlError:
            in_a_row = 0
            continue
        in_a_row = in_a_row + 1 if (time.perf_counter() - before) * 1e3 <= limit_ms else 0
    return time.perf_counter() - started
