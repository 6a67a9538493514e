"""Ctrl-C or SIGTERM at any moment leaves nothing running and nothing in shared memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from main_job import ROOT, MainJob
from tests.waiting import wait_for

MARK = "ALEXNET_TEST_MARK"


def marked(mark: str) -> list[int]:
    """Processes whose environment carries the mark: those started by this test, and all that they started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def forgotten_memory() -> set[str]:
    """Triton's regions of shared memory that no process has mapped; other tests' servers have theirs."""
    patterns = ("alexnet_triton_*", "triton_python_backend*")
    regions = {entry.name for pattern in patterns for entry in Path("/dev/shm").glob(pattern)}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped = maps.read_text()
        except OSError:
            continue
        regions = {name for name in regions if f"/dev/shm/{name}" not in mapped}
    return regions


@pytest.mark.parametrize(
    ("name", "delay_s"), [("SIGINT", 0.3), ("SIGTERM", 1.0), ("SIGTERM", 2.0), ("SIGINT", 3.0), ("SIGTERM", 4.0)]
)
def test_a_signal_leaves_nothing(main_job: MainJob, tmp_path: Path, name: str, delay_s: float) -> None:
    """Neither `make demo` nor `make serve`, which run side by side here."""
    mark, before = str(tmp_path), forgotten_memory()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    environment |= {MARK: mark, "HTTP_PORT": "0", "GRPC_PORT": "0", "METRICS_PORT": "0"}
    started = [start(target, main_job, environment) for target in ("demo", "serve")]
    time.sleep(delay_s)
    for process in started:
        if process.poll() is None:
            interrupt(process, name)
    for process in started:
        process.wait(30)
    deadline = time.monotonic() + 20
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    wait_for(lambda: forgotten_memory() <= before)  # another test's server may be ending: then its names go in a moment


def start(target: str, main_job: MainJob, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        ["make", target, f"ARTIFACTS={main_job.artifacts}"],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def interrupt(process: subprocess.Popen[bytes], name: str) -> None:
    """As a terminal does for Ctrl-C, to the whole group; SIGTERM to make alone."""
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()


DEAF = """
import os, signal, sys, time, weakref
from alexnet_triton.common.command import finish, leave_on_interrupt

class Module: pass

def work():
    module, space = Module(), {"os": os, "signal": signal}
    source = "def cb(reference): os.kill(os.getpid(), signal.SIGINT)"
    exec(compile(source, "<frozen importlib._bootstrap>", "exec"), space)  # as the callback that frees a module's lock
    reference = weakref.ref(module, space["cb"])
    del module
    time.sleep(20)

leave_on_interrupt()
sys.exit(finish("work", work))
"""


@pytest.mark.parametrize("error", ["UserError('it cannot be cast')", "ValueError('nor this')"])
def test_an_error_that_a_library_makes_of_an_interrupt_is_one(error: str) -> None:
    """As pybind11 does, whose casts call Python."""
    work = f"""
def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    except KeyboardInterrupt:
        pass
    raise {error}
"""
    names = "UserError, finish, leave_on_interrupt"
    head = f"import os, signal, sys, time\nfrom alexnet_triton.common.command import {names}\n"
    script = f"{head}{work}\nleave_on_interrupt()\nsys.exit(finish('work', work))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "work: interrupted; nothing is left half written\n")


def test_a_signal_that_meets_the_import_system_is_not_forgotten() -> None:
    """Python prints and forgets what is raised in the callbacks of the import system."""
    done = subprocess.run([sys.executable, "-c", DEAF], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "work: interrupted; nothing is left half written\n")
