"""The server that faults are done to: `alexnet-triton serve` in a folder of its own, and what it takes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from alexnet_triton.common.command import UserError
from alexnet_triton.serving.control import Control, ask_reference_image
from alexnet_triton.serving.errors import ServingError
from alexnet_triton.serving.launch import free_port
from alexnet_triton.serving.repository import Repository
from alexnet_triton.serving.supervisor import SHARED_MEMORY

HOST = "127.0.0.1"
STOP_TIMEOUT_S, COMMAND_TIMEOUT_S = 60.0, 150.0
_POLL_S = 0.02


class FaultSuiteError(UserError):
    """The suite cannot be run: images, a repository or the server are missing."""


@dataclass(frozen=True)
class Footprint:
    """What the server takes: processes, names in /dev/shm, and MiB of memory that no file backs.

    Memory is the anonymous part of PSS and the blocks of the names in /dev/shm. Pages of files are left out: they are
    shared with whatever program maps the same libraries, and cannot leak.
    """

    processes: int
    shared_names: int
    memory_mib: float


class ServedCopy:
    """A copy of a repository and the server on it, on ports that stay the same when it is started again."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.folder = folder.absolute()
        self.repository = self.folder / "model_repository"
        self.temporary = self.folder / "tmp"
        self.log, self.triton_log = self.folder / "serving.log", self.folder / "tritonserver.log"
        self.http_port, self.grpc_port, self.metrics_port = free_port(), free_port(), free_port()
        self._prefixes: set[str] = set()
        self._process: subprocess.Popen[str] | None = None
        for left in (self.repository, self.temporary):
            shutil.rmtree(left, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        link_tree(repository, self.repository)

    @property
    def http(self) -> str:
        return f"{HOST}:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"{HOST}:{self.grpc_port}"

    @property
    def control(self) -> Control:
        """A caller without the key of the closed interfaces."""
        return Control(HOST, self.http_port)

    @property
    def environment(self) -> dict[str, str]:
        """With a TMPDIR of the suite's own: `status`, `stop` and `publish` of others do not see this server."""
        return {**os.environ, "TMPDIR": str(self.temporary)}

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            FaultSuiteError: it does not start.
        """
        ports = ("--http-port", self.http_port, "--grpc-port", self.grpc_port, "--metrics-port", self.metrics_port)
        words = ("serve", "--repository", self.repository, *ports, "--log", self.triton_log)
        with self.log.open("a") as errors:
            self._process = subprocess.Popen(
                command(*words), env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self._process.stdout
        if not any(line.startswith("Ready:") for line in self._process.stdout):
            raise FaultSuiteError(f"the server did not start: see {self.log}")
        self._prefixes.add(self.prefix())

    def terminate(self) -> int:
        """Send SIGTERM and wait; returns the exit code of `serve`."""
        process, self._process = self._process, None
        assert process
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process:
            self.terminate()

    def run_command(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a sub-command of alexnet-triton to its end, beside the server."""
        return subprocess.run(
            command(*words),
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )

    def answers_rightly(self, timeout_s: float = 2.0) -> bool:
        """Whether the reference image gets its reference answer now."""
        try:
            ask_reference_image(self.control, Repository.open(self.repository, "cpu"), timeout_s, priority=1)
        except ServingError:
            return False
        return True

    def seconds_to_right_answer(self, timeout_s: float) -> float:
        """Seconds until the reference image gets its reference answer; infinity after `timeout_s`."""
        started = time.monotonic()
        while time.monotonic() - started < timeout_s:
            if self.answers_rightly():
                return time.monotonic() - started
            time.sleep(_POLL_S)
        return float("inf")

    def metric(self, name: str) -> float:
        """A value of `serve`'s metrics, summed over models; NaN while nothing answers."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.metrics_port}/metrics", timeout=5) as response:
                lines = response.read().decode().splitlines()
        except (urllib.error.URLError, OSError):
            return float("nan")
        return sum(float(line.split()[-1]) for line in lines if re.split(r"[{ ]", line)[0] == name)

    @property
    def tritonserver(self) -> int:
        """Its process id.

        Raises:
            FaultSuiteError: none runs.
        """
        return int(self._state()["tritonserver"])

    def stubs(self, model: str) -> list[int]:
        """Process ids of a model's stubs."""
        children = psutil.Process(self.tritonserver).children()
        return [child.pid for child in children if f"/{model}/" in _command_line(child)]

    def footprint(self) -> Footprint:
        """What the server takes now, with what earlier runs of it left."""
        processes, names = self._taken()
        kib = sum(map(_anonymous_kib, processes)) + sum(map(_blocks_kib, names))
        return Footprint(len(processes), len(names), kib / 1024)

    def counts(self) -> tuple[int, int]:
        """Its processes and shared names, as `footprint` has them, without the memory, which takes longest to read."""
        processes, names = self._taken()
        return len(processes), len(names)

    def _taken(self) -> tuple[list[int], list[Path]]:
        with suppress(FaultSuiteError):
            self._prefixes.add(self.prefix())
        return self.processes(), self.shared_memory()

    def processes(self) -> list[int]:
        """`serve` and all below it, and whatever else names this suite's folder: an orphan."""
        found: set[int] = set()
        with suppress(psutil.NoSuchProcess):
            if self._process:
                own = psutil.Process(self._process.pid)
                found = {own.pid, *(child.pid for child in own.children(recursive=True))}
        for process in psutil.process_iter():
            if str(self.temporary) in _command_line(process):
                found.add(process.pid)
        return sorted(found)

    def shared_memory(self) -> list[Path]:
        """What this server and its earlier runs have in /dev/shm."""
        return [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(tuple(self._prefixes))]

    def prefix(self) -> str:
        """What the names of its shared memory begin with.

        Raises:
            FaultSuiteError: none runs.
        """
        return f"alexnet_triton_{self._state_file().parent.name}_"

    def _state(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return json.loads(self._state_file().read_text())
        raise FaultSuiteError(f"no server runs in {self.folder}: see {self.log}")

    def _state_file(self) -> Path:
        """The newest run's: while it is restarted, the one before may still be there."""
        files = self.temporary.glob("alexnet-triton-*/*/run.json")
        try:
            return max(files, key=lambda path: path.stat().st_mtime)
        except (ValueError, FileNotFoundError):
            raise FaultSuiteError(f"no server runs in {self.folder}: see {self.log}") from None


def command(*words: object) -> Sequence[str]:
    """The command line of a sub-command."""
    return [sys.executable, "-m", "alexnet_triton", *map(str, words)]


def link_tree(source: Path, target: Path) -> None:
    """Copy a repository; files are links to the same bytes where the file system allows it, so never write into one.

    Raises:
        FaultSuiteError: there is no repository in `source`.
    """
    if not (source / "classify").is_dir():
        raise FaultSuiteError(f"no repository in {source}: run `make export`")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link_or_copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _command_line(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return " ".join(process.cmdline())
    return ""


def _anonymous_kib(pid: int) -> int:
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1])
    return 0


def _blocks_kib(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_blocks // 2
    return 0
