"""A tritonserver under supervision: the supervisor's own program, its handle in the starting program, and the reasons
of a failure in tritonserver's log.

The program is `python -m alexnet_triton.serving.supervisor GRACE_S SHM_PREFIX`; `SupervisedProcess` starts it.
"""

import ctypes
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

GRACE_S = 8.0  # from SIGTERM to SIGKILL
DRAINED_GRACE_S = 1.0  # the same after a drain
SHARED_MEMORY = Path("/dev/shm")
_SWEEP_S = 10.0  # the supervisor's own work after that
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


class Stub(NamedTuple):
    """A process that runs one instance of a model."""

    model: str
    memory: str  # name of what it shares with tritonserver


class SupervisedProcess:
    """A tritonserver under a supervisor. It ends with this process, however this process ends."""

    def __init__(self, command: list[str], env: dict[str, str], log: IO[bytes], shm_prefix: str, lock: int) -> None:
        """Start it. Its output goes to `log`; `lock` is a descriptor that stays open as long as it runs."""
        supervisor = [sys.executable, "-m", "alexnet_triton.serving.supervisor", str(GRACE_S), shm_prefix]
        self._supervisor = subprocess.Popen(
            supervisor,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C in the terminal is this process's to handle
        )
        assert self._supervisor.stdin
        assert self._supervisor.stdout
        self._stdin, stdout = self._supervisor.stdin, self._supervisor.stdout
        self._stdin.write(json.dumps(command).encode() + b"\n")
        self._stdin.flush()
        with stdout:
            self.pid = int(stdout.readline() or 0)
        self._pidfd = os.pidfd_open(self._supervisor.pid)

    @property
    def supervisor_pid(self) -> int:
        return self._supervisor.pid

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Wait until it has ended and is swept up, at most `timeout_s`."""
        return bool(select.select([self._pidfd], [], [], timeout_s)[0])

    def stubs(self) -> dict[int, "Stub"]:
        """The live stubs of the Python backend, by process id."""
        stubs = {}
        for pid in self._children():
            with suppress(FileNotFoundError, ProcessLookupError):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if len(arguments) > 1 and arguments[1].endswith("/model.py"):
                    stubs[pid] = Stub(Path(arguments[1]).parents[1].name, arguments[2])
        return stubs

    def _children(self) -> list[int]:
        pids: list[int] = []
        with suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):
                    pids += map(int, (thread / "children").read_text().split())
        return sorted(pids)

    def kill(self) -> None:
        """End it at once: requests in flight are lost."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end_soon(self) -> None:
        """End it after a drain: connections that callers keep open, with nothing in flight, are not waited for."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        if not self.ended(DRAINED_GRACE_S):
            self.kill()

    def stop(self) -> int:
        """End it, within the grace; returns tritonserver's exit status."""
        self._stdin.close()
        if not self.ended(GRACE_S + _SWEEP_S):
            self._supervisor.kill()
        return self._supervisor.wait()


def main(argv: list[str]) -> int:
    """Run a command until it ends or standard input closes; returns its exit status, negative for a signal.

    Standard input is a pipe that the starting program holds. Its first line is the command as JSON: the command holds
    secrets, and any user can read a command line. The pipe closes when the starting program wants the end, or is
    killed: then tritonserver gets SIGTERM, `grace_s` seconds, and SIGKILL. When tritonserver ends, for whatever reason,
    the supervisor kills the stubs that it left and clears its shared memory. When the supervisor itself is killed, the
    kernel kills tritonserver, and the stubs end on their own.
    """
    grace_s, shm_prefix, command = float(argv[0]), argv[1], json.loads(sys.stdin.readline())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # stubs of a dead server become children of this process
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: None)
    wakeup = _wake_on_signals()

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # dead stubs that Triton never waits for leave no zombies
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))  # 1,024 is 1,024 callers

    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=prepare)
    print(server.pid, flush=True)
    pidfd = os.pidfd_open(server.pid)
    if not _ended(pidfd, sys.stdin.fileno(), wakeup, timeout_s=None):
        server.send_signal(signal.SIGTERM)
        if not _ended(pidfd, timeout_s=grace_s):
            server.kill()
    status = server.wait()
    _kill_orphans()
    clear_shared_memory(shm_prefix)
    return status


def _wake_on_signals() -> int:
    """A descriptor that becomes readable when a signal arrives; otherwise `select` would go on after it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _ended(pidfd: int, *others: int, timeout_s: float | None) -> bool:
    """Wait for the server's end, another descriptor, or the timeout; says whether it was the first."""
    ready, _, _ = select.select([pidfd, *others], [], [], timeout_s)
    return pidfd in ready


def _kill_orphans() -> None:
    """Kill and reap every process below this one, and those that their death hands down."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := [int(pid) for pid in children.read_text().split()]:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def clear_shared_memory(prefix: str) -> None:
    """Delete what a run left, whose names begin with `prefix`."""
    for entry in SHARED_MEMORY.glob(f"{prefix}*"):
        entry.unlink(missing_ok=True)


_FAILED_LOAD = re.compile(r"Z E \d+ \S+ \"failed to load (?P<reason>'\w+' version \d+: .*?)\"?$", re.MULTILINE)
_FATAL = re.compile(r"^error: (?P<reason>.*)$", re.MULTILINE)
_PORT = re.compile(r"Socket '[^']*:(?P<port>\d+)' already in use")
_ABORT = "boost::interprocess::lock_exception"
_MAX_CHARACTERS = 300


@dataclass(frozen=True)
class End:
    """What tritonserver's log says of its end.

    Attributes:
        taken_port: the port that another program has.
        backend_aborted: the Python backend ended tritonserver over a lock that it shares with a stub.
        reason: in one line: the model that did not load, else the last error.
    """

    taken_port: int | None
    backend_aborted: bool
    reason: str


def read_end(log: Path, start: int = 0) -> End:
    """Read it from `start`, in bytes."""
    text = log.read_bytes()[start:].decode(errors="replace")
    port, match = _PORT.search(text), _FAILED_LOAD.search(text) or _FATAL.search(text)
    reason = match["reason"].replace("\\", "")[:_MAX_CHARACTERS].strip() if match else "no reason given"
    return End(int(port["port"]) if port else None, _ABORT in text, reason)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) & 0xFF)
