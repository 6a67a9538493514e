"""Runs tritonserver as its one child, and lets nothing of it outlive the program that asked for it.

    python -m serving.keeper GRACE_S SHM_PREFIX

Standard input is a pipe that the asking program holds. Its first line is the command, as JSON: there are secrets in
it, and any user can read a command line. When it closes, because that program wants the end or because
it was killed, tritonserver gets SIGTERM, `GRACE_S` seconds, then SIGKILL. When tritonserver ends, for whatever reason,
the stubs it left are killed and its shared memory is cleared. When the keeper itself is killed, the kernel kills
tritonserver, and the stubs end on their own.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_LIBC = ctypes.CDLL(None, use_errno=True)


def main(argv: list[str]) -> int:
    """Keep the command until it ends or standard input closes; returns its exit status, negative for a signal."""
    grace_s, shm_prefix, command = float(argv[0]), argv[1], json.loads(sys.stdin.readline())
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # stubs of a dead server become children of this process
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: None)
    wakeup = _wake_on_signals()
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    print(server.pid, flush=True)
    pidfd = os.pidfd_open(server.pid)
    if not _ended(pidfd, sys.stdin.fileno(), wakeup, timeout_s=None):
        server.send_signal(signal.SIGTERM)
        if not _ended(pidfd, timeout_s=grace_s):
            server.kill()
    status = server.wait()
    _kill_orphans()
    _clear_shared_memory(shm_prefix)
    return status


def _die_with_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


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


def _clear_shared_memory(prefix: str) -> None:
    for entry in Path("/dev/shm").glob(f"{prefix}*"):
        entry.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) & 0xFF)
