"""Samples, once a second or less often: memory, descriptors and cores of server and generator, and Triton's metrics."""

import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from alexnet_triton.client.config import Address
from alexnet_triton.serving.runs import find_runs

INTERVAL_S = 1.0
MOST_SAMPLES = 1800
MOST_METRICS_BYTES = 1 << 24
PENDING = "nv_inference_pending_request_count"
LINE = re.compile(r"^(\w+)(?:\{([^}]*)\})? ([-+.\w]+)$", re.MULTILINE)
MODEL = re.compile(r'model="([^"]*)"')
Counts = dict[tuple[str, str], float]  # (metric, model) to its value


@dataclass(frozen=True)
class Usage:
    """Of a process and those below it. `cores` is processor time by time, since the sample before."""

    cores: float
    memory_mib: float
    descriptors: int


@dataclass(frozen=True)
class Sample:
    """One moment. `pending` and `mean_batch` are Triton's, by model; None is what could not be had."""

    at_s: float
    generator: Usage
    server: Usage | None
    pending: dict[str, float]
    mean_batch: dict[str, float]


def find_place(address: Address, metrics_url: str | None) -> tuple[int | None, str]:
    """The process of the server behind an address, where it is one of this project's on this machine; its metrics."""
    for run in find_runs():
        ports = run.state["ports"]
        if run.state["host"] == address.host and address.port in (ports["http"], ports["grpc"]):
            return run.state["tritonserver"], metrics_url or f"http://{address.host}:{ports['metrics']}/metrics"
    port = os.environ.get("METRICS_PORT", "8002")
    return None, metrics_url or f"http://{address.host}:{port}/metrics"


class Sampler:
    """Samples in a thread from `start` to `stop`, and says in `note` what it could not see."""

    def __init__(self, pid: int | None, metrics_url: str, seconds: float) -> None:
        """`seconds` is how long it will be: of a long run, fewer moments are kept. `pid` is the server's, if known."""
        self._interval_s = max(INTERVAL_S, seconds / MOST_SAMPLES)
        self.samples: list[Sample] = []
        self.note = ""
        self._metrics_url = metrics_url
        self._own, self._server = _Meter(os.getpid()), _Meter(pid)
        self._counts: Counts = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Take the first sample after an interval."""
        self._started_s = time.monotonic()
        self._own.read()
        self._server.read()
        self._counts = self._scrape()
        self._thread.start()

    def stop(self) -> None:
        """Take no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            own, server = self._own.read(), self._server.read()
            assert own, "this process runs"
            counts = self._scrape()
            at_s = time.monotonic() - self._started_s
            self.samples.append(
                Sample(at_s, own, server, _by_model(counts, PENDING), _mean_batch(self._counts, counts))
            )
            self._counts = counts

    def _scrape(self) -> Counts:
        if self.note:
            return {}
        try:
            with urllib.request.urlopen(self._metrics_url, timeout=INTERVAL_S) as response:
                return parse_metrics(response.read(MOST_METRICS_BYTES).decode())
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            self.note = f"no metrics from {self._metrics_url} ({reason}): name them with --metrics URL"
            return {}


def parse_metrics(text: str) -> Counts:
    """Prometheus' text format: (metric, model) to the sum over the model's versions."""
    sums: Counts = {}
    for name, labels, value in LINE.findall(text):
        model = MODEL.search(labels)
        key = (name, model.group(1) if model else "")
        sums[key] = sums.get(key, 0.0) + float(value)
    return sums


def _by_model(counts: Counts, metric: str) -> dict[str, float]:
    return {model: value for (name, model), value in counts.items() if name == metric}


def _mean_batch(before: Counts, now: Counts) -> dict[str, float]:
    """Images a batch since the sample before, of the models that ran one."""
    grown = {key: value - before.get(key, 0.0) for key, value in now.items()}
    images, batches = _by_model(grown, "nv_inference_count"), _by_model(grown, "nv_inference_exec_count")
    return {model: images.get(model, 0.0) / count for model, count in batches.items() if count > 0}


class _Meter:
    def __init__(self, pid: int | None) -> None:
        self._root: psutil.Process | None = None
        with suppress(psutil.NoSuchProcess):
            self._root = psutil.Process(pid) if pid else None
        self._cpu_s = self._at_s = 0.0

    def read(self) -> Usage | None:
        """Since the reading before; None where the process is unknown or gone."""
        if self._root is None:
            return None
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            return self._measure([self._root, *self._root.children(recursive=True)])
        return None

    def _measure(self, processes: Sequence[psutil.Process]) -> Usage:
        cpu_s = memory = descriptors = 0.0
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu_s += times.user + times.system
                memory += process.memory_info().rss
                descriptors += process.num_fds()
        now_s = time.monotonic()
        cores = (cpu_s - self._cpu_s) / max(1e-9, now_s - self._at_s)
        self._cpu_s, self._at_s = cpu_s, now_s
        return Usage(max(0.0, cores), memory / 2**20, int(descriptors))
