"""Stages `overload` and `soak`, and clients that check every answer while something is done to the server."""

import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np
import psutil

from alexnet_triton.client.config import Config
from alexnet_triton.loadtest.bench.config import Advance, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.photographs import load_images
from alexnet_triton.loadtest.bench.servers import Triton, triton
from alexnet_triton.loadtest.bench.wrk import jpeg_load
from alexnet_triton.loadtest.measure import Measured, Setup, measure_in_process
from alexnet_triton.loadtest.recorder import Times
from alexnet_triton.loadtest.workload import Plan
from alexnet_triton.serving.control import Control
from alexnet_triton.serving.errors import ControlError

CLIENTS = 8
TOLERANCE = 0.02  # between probabilities: INT8 in batches of different sizes
PAUSE_S = 0.02  # after a refusal
CONNECTIONS = 64  # give the sustained rate
OVERLOAD = 2.0  # times the sustained rate
OVERLOAD_CONNECTIONS, OVERLOAD_TIMEOUT_S = 2048, 15.0
NORMAL_IN_A_ROW, NORMAL_TIMEOUT_S = 10, 60.0
REFUSED = "HTTP 503"
SAMPLE_S = 5.0
EARLY = 0.2  # fraction of the soak after which everything has been touched once


class CheckedClients:
    """Threads that send one image each, again and again, and compare the answers with the first one."""

    def __init__(self, control: Control, bodies: Sequence[bytes]) -> None:
        self._control = control
        self._bodies = bodies[:CLIENTS]
        self._expected = [np.array(control.classify(body)[1]) for body in self._bodies]
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]
        self._last_right = [0.0] * CLIENTS  # when each client sent its last request that was answered rightly
        self._problems: list[tuple[float, str]] = []  # when a request was sent, and what became of it
        self.answered, self.wrong = 0, 0

    def all_answered_since(self, moment: float) -> bool:
        """Whether every client has a right answer to a request that it sent after `moment`."""
        return all(sent > moment for sent in self._last_right)

    def problems(self, since: float = 0.0, until: float = math.inf) -> Counter[str]:
        """What became of the requests that were sent between two moments and not answered."""
        return Counter(kind for sent, kind in self._problems if since <= sent < until)

    def _run(self, number: int) -> None:
        while not self._stopped.is_set():
            sent = time.perf_counter()
            try:
                _, probabilities = self._control.classify(self._bodies[number], timeout_s=20)
            except ControlError as error:
                self._problems.append((sent, _describe_problem(error)))
                time.sleep(PAUSE_S)
                continue
            self.answered += 1
            if np.abs(np.array(probabilities) - self._expected[number]).max() > TOLERANCE:
                self.wrong += 1
            else:
                self._last_right[number] = sent

    def __enter__(self) -> "CheckedClients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def _describe_problem(error: ControlError) -> str:
    if error.status:
        return f"refused with {error.status}"
    return "not connected" if isinstance(error.__cause__, ConnectionRefusedError) else "cut"


def measure_overload(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Twice the sustained rate from clients that do not wait, and the time until single requests are fast again."""
    with triton(config.repository, config.folder) as server:
        jpeg_load(server, CONNECTIONS, config.warm_up_s, config.bodies)
        advance("the sustained rate")
        rounds = [jpeg_load(server, CONNECTIONS, config.seconds, config.bodies) for _ in range(config.repeats)]
        peaks = [each.images_per_s for each in rounds]
        peak = median(peaks)
        before_ms = jpeg_load(server, 1, config.seconds / 2, config.bodies).p99_ms
        advance(f"{OVERLOAD * peak:.0f} requests a second for {config.overload_s:g} s")
        load = Plan(OVERLOAD * peak, config.overload_s, arrivals="poisson")
        setup = Setup(load, connections=OVERLOAD_CONNECTIONS, timeout_s=OVERLOAD_TIMEOUT_S)
        measured = measure_in_process(Config(urls=(f"http://{server.http}",)), config.bodies, setup)
        normal_s = _time_to_normal(server, load_images(config.bodies)[0], 2 * before_ms)
    return {"sustained_per_s": peaks, **_evaluate(measured, peak), "normal_after_s": normal_s}


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


def measure_soak(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Resident memory every five seconds under load, and its growth from minute 2 of 10 to the end."""
    samples: list[dict[str, float]] = []
    with triton(config.repository, config.folder) as server, ThreadPoolExecutor(1) as pool:
        run = pool.submit(jpeg_load, server, CONNECTIONS, config.soak_s, config.bodies)
        started = time.perf_counter()
        while not run.done():
            time.sleep(SAMPLE_S)
            samples.append({"seconds": time.perf_counter() - started, "resident_mib": _resident_mib(server)})
            advance(f"{samples[-1]['seconds']:.0f} of {config.soak_s:.0f} s, {samples[-1]['resident_mib']:.0f} MiB")
    early, late = _median_near(samples, EARLY * config.soak_s), _median_near(samples, config.soak_s)
    return {
        "rows": samples,
        "seen": asdict(run.result()),
        "resident_mib": {"minute 2": early, "minute 10": late},
        "ratios": {"growth": late / early - 1},
    }


def _resident_mib(server: Triton) -> float:
    """Of the command, the supervisor, tritonserver and its stubs; memory that they share counts once for each."""
    own = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True))) / 2**20


def _median_near(samples: list[dict[str, float]], second: float) -> float:
    """The median of the six samples nearest to a moment."""
    nearest = sorted(samples, key=lambda sample: abs(sample["seconds"] - second))[:6]
    return median(sample["resident_mib"] for sample in nearest)
