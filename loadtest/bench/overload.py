"""Stage `overload`: more than the server can do for a minute."""

import time
from statistics import median
from typing import Any

from alexnet_triton.client.config import Config
from alexnet_triton.loadtest.bench.config import Advance, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.servers import Triton, triton
from alexnet_triton.loadtest.bench.wrk import jpeg_load
from alexnet_triton.loadtest.measure import Measured, Setup, measure_in_process
from alexnet_triton.loadtest.recorder import Times
from alexnet_triton.loadtest.workload import Plan, Users
from alexnet_triton.serving.errors import ControlError

CONNECTIONS = 64  # give the sustained rate
OVERLOAD = 2.0  # times the sustained rate
OVERLOAD_CONNECTIONS, OVERLOAD_TIMEOUT_S = 2048, 15.0
NORMAL_IN_A_ROW, NORMAL_TIMEOUT_S = 10, 60.0
REFUSED = "HTTP 503"


def measure_overload(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Twice the sustained rate from clients that do not wait, and the time until single requests are fast again.

    The same load generator finds the sustained rate: it runs on the server's cores, so another one's cost differs.
    """
    with triton(config.repository, config.folder, config.variant) as server:
        jpeg_load(server, CONNECTIONS, config.warm_up_s, config.bodies)
        advance("the sustained rate")
        target = Config(urls=(f"http://{server.http}",))
        users = Setup(Users(CONNECTIONS, config.seconds), connections=CONNECTIONS, timeout_s=OVERLOAD_TIMEOUT_S)
        rounds = [measure_in_process(target, config.bodies, users) for _ in range(config.repeats)]
        peaks = [each.right / each.seconds for each in rounds]
        peak = median(peaks)
        before_ms = jpeg_load(server, 1, config.seconds / 2, config.bodies).p99_ms
        advance(f"{OVERLOAD * peak:.0f} requests a second for {config.overload_s:g} s")
        load = Plan(OVERLOAD * peak, config.overload_s, arrivals="poisson")
        setup = Setup(load, connections=OVERLOAD_CONNECTIONS, timeout_s=OVERLOAD_TIMEOUT_S)
        measured = measure_in_process(target, config.bodies, setup)
        normal_s = _time_to_normal(server, config.load_images()[0], 2 * before_ms)
    cores = {"sustained": rounds[-1].generator.cores, "overload": measured.generator.cores}
    return {"sustained_per_s": peaks, "generator_cores": cores, **_evaluate(measured, peak), "normal_after_s": normal_s}


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
