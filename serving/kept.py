"""The asking program's side of the keeper: start a kept tritonserver, watch it, end it."""

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import IO

GRACE_S = 8.0  # from SIGTERM to SIGKILL
_SWEEP_S = 10.0  # the keeper's own work after that


class KeptProcess:
    """A tritonserver under a keeper. It ends with this process, however this process ends."""

    def __init__(self, command: list[str], env: dict[str, str], log: IO[bytes], shm_prefix: str, lock: int) -> None:
        """Start it. Its output goes to `log`; `lock` is a descriptor that lives as long as it does."""
        keeper = [sys.executable, "-m", "serving.keeper", str(GRACE_S), shm_prefix]
        self._keeper = subprocess.Popen(
            keeper + command,
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
        with stdout:
            self.pid = int(stdout.readline() or 0)
        self._pidfd = os.pidfd_open(self._keeper.pid)

    @property
    def keeper_pid(self) -> int:
        return self._keeper.pid

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Wait until it has ended and is swept up, at most `timeout_s`."""
        return bool(select.select([self._pidfd], [], [], timeout_s)[0])

    def stubs(self) -> list[int]:
        """Process ids of the Python backend's stubs."""
        try:
            threads = list(Path(f"/proc/{self.pid}/task").iterdir())
            return sorted(int(pid) for thread in threads for pid in (thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            return []

    def stop(self) -> int:
        """End it, within the grace; returns tritonserver's exit status."""
        self._stdin.close()
        if not self.ended(GRACE_S + _SWEEP_S):
            self._keeper.kill()
        return self._keeper.wait()
