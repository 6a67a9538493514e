"""Stage `soak`: ten minutes of load, and what it does to the memory of all the server's processes."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from statistics import median
from types import TracebackType
from typing import Any

import numpy as np
import psutil

from alexnet_triton.loadtest.bench import open_loop, wrk
from alexnet_triton.loadtest.bench.config import BenchConfig, BenchError
from alexnet_triton.loadtest.bench.photographs import load_images as load_images
from alexnet_triton.loadtest.bench.servers import TRITON_HEADERS, Triton, triton
from alexnet_triton.serving.control import Control
from alexnet_triton.serving.errors import ControlError

# WAS alexnet_triton.loadtest.bench.overload: Callers that check every answer, while something is done to the server.


COUNT = 8
TOLERANCE = 0.02  # INT8 in batches of different sizes
PAUSE_S = 0.02  # after a refusal


class Callers:
    """Threads that ask one image each, again and again, and compare what they get with the first answer."""

    def __init__(self, control: Control, bodies: Sequence[bytes]) -> None:
        self._control = control
        self._bodies = bodies[:COUNT]
        self._expected = [np.array(control.classify(body)[1]) for body in self._bodies]
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(COUNT)]
        self.last_right = [0.0] * COUNT  # when each asked for what was answered rightly last
        self.answered, self.wrong = 0, 0
        self._problems: list[tuple[float, str]] = []  # when it was asked, what became of it

    def all_answered_since(self, moment: float) -> bool:
        """Whether every caller has been answered rightly what it asked after `moment`."""
        return all(asked > moment for asked in self.last_right)

    def problems(self, since: float = 0.0, until: float = math.inf) -> Counter[str]:
        """What became of the requests that were asked between two moments and not answered."""
        return Counter(kind for asked, kind in self._problems if since <= asked < until)

    def _call(self, number: int) -> None:
        while not self._stopped.is_set():
            asked = time.perf_counter()
            try:
                _, probabilities = self._control.classify(self._bodies[number], timeout_s=20)
            except ControlError as error:
                self._problems.append((asked, _kind(error)))
                time.sleep(PAUSE_S)
                continue
            self.answered += 1
            if np.abs(np.array(probabilities) - self._expected[number]).max() > TOLERANCE:
                self.wrong += 1
            else:
                self.last_right[number] = asked

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def _kind(error: ControlError) -> str:
    if error.status:
        return f"refused with {error.status}"
    return "not connected" if isinstance(error.__cause__, ConnectionRefusedError) else "cut"


# WAS alexnet_triton.loadtest.bench.overload: Stage `overload`: twice the rate that the server sustains, from callers that do not wait.


TIMES = 2.0
SATURATING = 64  # connections that give the sustained rate
NORMAL_IN_A_ROW = 10
OK, REFUSED = 200, 503


def measure_overload(config: BenchConfig, advance: Callable[[str], None]) -> dict[str, Any]:
    """The sustained rate; twice that, open loop; how long until single requests are answered as before."""
    with triton(config.repository, config.folder) as server:
        wrk.http_load(server.url, SATURATING, config.warm_up_s, config.bodies, TRITON_HEADERS)
        advance("the sustained rate")
        peaks = [
            wrk.http_load(server.url, SATURATING, config.seconds, config.bodies, TRITON_HEADERS).images_per_s
            for _ in range(config.repeats)
        ]
        peak = median(peaks)
        before_ms = wrk.http_load(server.url, 1, config.seconds / 2, config.bodies, TRITON_HEADERS).p99_ms
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


CONNECTIONS = 64
SAMPLE_S = 5.0
FROM = 0.2  # of the time: what is touched for the first time has been touched by then


def measure_soak(config: BenchConfig, advance: Callable[[str], None]) -> dict[str, Any]:
    """Resident memory every five seconds; its growth from minute 2 of 10 to the end."""
    samples: list[dict[str, float]] = []
    with triton(config.repository, config.folder) as server, ThreadPoolExecutor(1) as pool:
        run = pool.submit(wrk.http_load, server.url, CONNECTIONS, config.soak_s, config.bodies, TRITON_HEADERS)
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
