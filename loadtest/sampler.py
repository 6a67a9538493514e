"""Samples, once a second or less often: memory, descriptors and cores of server and generator."""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from alexnet_triton.client.config import Address
from alexnet_triton.serving.runs import find_runs

INTERVAL_S = 1.0
MOST_SAMPLES = 1800


@dataclass(frozen=True)
class Usage:
    """Of a process and those below it. `cores` is processor time by time, since the sample before."""

    cores: float
    memory_mib: float
    descriptors: int


@dataclass(frozen=True)
class Sample:
    """One moment; None is what could not be had."""

    at_s: float
    generator: Usage
    server: Usage | None


def find_process(address: Address) -> int | None:
    """The process of the server behind an address, where it is one of this project's on this machine."""
    for run in find_runs():
        ports = run.state["ports"]
        if run.state["host"] == address.host and address.port in (ports["http"], ports["grpc"]):
            return run.state["tritonserver"]
    return None


class Sampler:
    """Samples in a thread from `start` to `stop`."""

    def __init__(self, pid: int | None, seconds: float) -> None:
        """`seconds` is how long it will be: of a long run, fewer moments are kept. `pid` is the server's, if known."""
        self._interval_s = max(INTERVAL_S, seconds / MOST_SAMPLES)
        self.samples: list[Sample] = []
        self._own, self._server = _Meter(os.getpid()), _Meter(pid)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Take the first sample after an interval."""
        self._started_s = time.monotonic()
        self._own.read()
        self._server.read()
        self._thread.start()

    def stop(self) -> None:
        """Take no more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            own, server = self._own.read(), self._server.read()
            assert own, "this process runs"
            self.samples.append(Sample(time.monotonic() - self._started_s, own, server))


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
