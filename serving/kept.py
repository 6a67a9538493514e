"""The asking program's side of the keeper: start a kept tritonserver, watch it, end it."""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

GRACE_S = 8.0  # from SIGTERM to SIGKILL
DRAINED_GRACE_S = 1.0  # the same after a drain
_SWEEP_S = 10.0  # the keeper's own work after that


class KeptProcess:
    """A tritonserver under a keeper. It ends with this process, however this process ends."""

    def __init__(self, command: list[str], env: dict[str, str], log: IO[bytes], shm_prefix: str, lock: int) -> None:
        """Start it. Its output goes to `log`; `lock` is a descriptor that lives as long as it does."""
        keeper = [sys.executable, "-m", "serving.keeper", str(GRACE_S), shm_prefix]
        self._keeper = subprocess.Popen(
            keeper,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C in the terminal is this process's to handle
        )
        assert self._keeper.stdin
        assert self._keeper.stdout
        self._stdin, stdout = self._keeper.stdin, self._keeper.stdout
        self._stdin.write(json.dumps(command).encode() + b"\n")
        self._stdin.flush()
        with stdout:
            self.pid = int(stdout.readline() or 0)
        self._pidfd = os.pidfd_open(self._keeper.pid)

    @property
    def keeper_pid(self) -> int:
        return self._keeper.pid

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Wait until it has ended and is swept up, at most `timeout_s`."""
        return bool(select.select([self._pidfd], [], [], timeout_s)[0])

    def stub_models(self) -> dict[int, str]:
        """Process id -> model, of each live stub of the Python backend."""
        stubs = {}
        for pid in self._children():
            with suppress(FileNotFoundError, ProcessLookupError):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if len(arguments) > 1 and arguments[1].endswith("/model.py"):
                    stubs[pid] = Path(arguments[1]).parents[1].name
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
            self._keeper.kill()
        return self._keeper.wait()
