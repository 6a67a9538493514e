"""Stage `faults`: stubs and servers killed under load, again and again, and at the end SIGTERM under load."""

import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import psutil

from alexnet_triton.loadtest.bench.config import Advance, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.servers import Triton, triton
from alexnet_triton.serving.control import Control
from alexnet_triton.serving.errors import ControlError
from alexnet_triton.serving.runs import SHARED_MEMORY, RunningServer, find_runs

VICTIMS = ("alexnet", "tritonserver", "preprocess")
CLIENTS = 8
TOLERANCE = 0.02  # between probabilities: INT8 in batches of different sizes
PAUSE_S = 0.02  # after a refusal
RECOVERY_TIMEOUT_S = 60.0
SETTLE_S = 2.0  # load before the first kill and after each recovery
IN_FLIGHT_S = 1.5  # requests sent so long before SIGTERM count as in flight; less than SETTLE_S


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


def measure(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Seconds from each kill until every client has a right answer; what SIGTERM cuts, and what is left behind.

    Raises:
        BenchError: the server does not recover.
    """
    started = time.perf_counter()
    with triton(config.repository, config.folder) as server:
        start_s = time.perf_counter() - started
        with CheckedClients(server.control, config.load_images()) as clients:
            time.sleep(SETTLE_S)
            prefixes, kills = {_find_run(server).directory.shm_prefix}, []
            for number in range(config.kills):
                victim = VICTIMS[number % len(VICTIMS)]
                advance(f"kill {number + 1} of {config.kills}: {victim}")
                kills.append((victim, _kill(server, victim, clients)))
                prefixes.add(_find_run(server).directory.shm_prefix)  # a restarted server is another run
            processes = psutil.Process(server.process.pid).children(recursive=True)
            advance("SIGTERM")
            told = time.perf_counter()
            server.process.terminate()
            server.process.wait()
            exit_s = time.perf_counter() - told
    return {
        "start_to_first_right_answer_s": start_s,
        "recovery_s": [f"{victim} {seconds:.2f}" for victim, seconds in kills],
        "worst_recovery_s": max((seconds for _, seconds in kills), default=0.0),
        "answered": clients.answered,
        "wrong": clients.wrong,
        "sigterm_exit_s": exit_s,
        "in_flight_at_sigterm_and_not_answered": dict(clients.problems(since=told - IN_FLIGHT_S, until=told)),
        "asked_after_sigterm": dict(clients.problems(since=told)),
        "left_in_shared_memory": _left_in_shared_memory(prefixes),
        "left_processes": sum(process.is_running() for process in processes),
    }


def _kill(server: Triton, victim: str, clients: CheckedClients) -> float:
    """Kill a process of the server; returns the seconds until every client has a right answer again."""
    os.kill(_find_process(server, victim), signal.SIGKILL)
    killed = time.perf_counter()
    while not clients.all_answered_since(killed):
        if time.perf_counter() - killed > RECOVERY_TIMEOUT_S:
            raise BenchError(f"no right answer {RECOVERY_TIMEOUT_S:g} s after {victim} was killed")
        time.sleep(0.01)
    recovery_s = time.perf_counter() - killed
    time.sleep(SETTLE_S)
    return recovery_s


def _find_process(server: Triton, name: str) -> int:
    """The process id of tritonserver, or of a stub of the model `name`."""
    pid = _find_run(server).state["tritonserver"]
    if name == "tritonserver":
        return pid
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):  # killed, and not reaped yet: psutil's ZombieProcess is one
            if f"/{name}/" in " ".join(child.cmdline()):
                return child.pid
    raise BenchError(f"tritonserver {pid} has no process of {name} to kill: see its log")


def _find_run(server: Triton) -> RunningServer:
    return next(run for run in find_runs() if run.state["owner"] == server.process.pid)


def _left_in_shared_memory(prefixes: set[str]) -> list[str]:
    return sorted(path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith(tuple(prefixes)))
