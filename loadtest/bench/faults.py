"""Stage `faults`: stubs and servers killed under load, ten times in a row, then SIGTERM under load."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

from alexnet_triton.loadtest.bench.config import BenchConfig, BenchError
from alexnet_triton.loadtest.bench.overload import Callers
from alexnet_triton.loadtest.bench.photographs import load_images as load_images
from alexnet_triton.loadtest.bench.servers import Triton, triton
from alexnet_triton.serving.control import Control
from alexnet_triton.serving.runs import SHARED_MEMORY, RunningServer, find_runs

VICTIMS = ("alexnet", "tritonserver", "preprocess")
RECOVERY_TIMEOUT_S = 60.0
SETTLE_S = 2.0
IN_FLIGHT_S = 1.5  # before SIGTERM, and after the last recovery
Advance = Callable[[str], None]


def measure(config: BenchConfig, advance: Advance) -> dict[str, Any]:
    """Seconds from each kill until every caller has a right answer again; what SIGTERM cuts, and what is left.

    Raises:
        BenchError: the server does not come back.
    """
    started = time.perf_counter()
    with triton(config.repository, config.folder) as server:
        start_s = time.perf_counter() - started
        host, _, port = server.addresses.http.rpartition(":")
        with Callers(Control(host, int(port)), load_images(config.bodies)) as callers:
            time.sleep(SETTLE_S)
            prefixes, kills = {_run(server).directory.shm_prefix}, []
            for number in range(config.kills):
                kills.append(_kill(server, callers, number, config.kills, advance))
                prefixes.add(_run(server).directory.shm_prefix)
            pids, told = _pids(server), time.perf_counter()
            advance("SIGTERM")
            exit_s = _terminate(server)
    return {
        "start_to_first_right_answer_s": start_s,
        "recovery_s": [f"{victim} {seconds:.2f}" for victim, seconds in kills],
        "worst_recovery_s": max((seconds for _, seconds in kills), default=0.0),
        "answered": callers.answered,
        "wrong": callers.wrong,
        "sigterm_exit_s": exit_s,
        "in_flight_at_sigterm_and_not_answered": dict(callers.problems(since=told - IN_FLIGHT_S, until=told)),
        "asked_after_sigterm": dict(callers.problems(since=told)),
        "left_in_shared_memory": _left_behind(prefixes),
        "left_processes": sum(psutil.pid_exists(pid) for pid in pids),
    }


def _kill(server: Triton, callers: Callers, number: int, count: int, advance: Advance) -> tuple[str, float]:
    name = VICTIMS[number % len(VICTIMS)]
    advance(f"kill {number + 1} of {count}: {name}")
    os.kill(_find(server, name), signal.SIGKILL)
    moment = time.perf_counter()
    while not callers.all_answered_since(moment):
        if time.perf_counter() - moment > RECOVERY_TIMEOUT_S:
            raise BenchError(f"no right answer {RECOVERY_TIMEOUT_S:g} s after {name} was killed")
        time.sleep(0.01)
    seconds = time.perf_counter() - moment
    time.sleep(SETTLE_S)
    return name, seconds


def _find(server: Triton, name: str) -> int:
    """The process id of tritonserver, or of one stub of a model."""
    pid = _run(server).state["tritonserver"]
    if name == "tritonserver":
        return pid
    return next(child.pid for child in psutil.Process(pid).children() if f"/{name}/" in _words(child))


def _words(process: psutil.Process) -> str:
    """Its command line; none of one that was killed before, until it is reaped."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # of which a zombie is one to psutil
        return ""


def _run(server: Triton) -> RunningServer:
    return next(run for run in find_runs() if run.state["owner"] == server.process.pid)


def _pids(server: Triton) -> list[int]:
    return [child.pid for child in psutil.Process(server.process.pid).children(recursive=True)]


def _terminate(server: Triton) -> float:
    started = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait()
    return time.perf_counter() - started


def _left_behind(prefixes: set[str]) -> list[str]:
    """Shared memory of this server's runs: a server that is started again is another run."""
    return sorted(path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith(tuple(prefixes)))
