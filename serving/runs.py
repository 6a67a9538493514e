"""The folder of each running server of this user, with its links, log and state; finding and ending servers."""

import fcntl
import json
import os
import secrets
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_triton.common.files import write_json
from alexnet_triton.serving.control import Control, check_health
from alexnet_triton.serving.errors import ServingError
from alexnet_triton.serving.repository import Repository

SHARED_MEMORY = Path("/dev/shm")
STOP_TIMEOUT_S = 25.0


class RunDir:
    """A private folder that lives as long as its run; its lock says whether the run is alive."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def shm_prefix(self) -> str:
        """What the names of this run's shared memory begin with, so that it can be told from any other's."""
        return f"alexnet_triton_{self.path.name}_"

    @property
    def state_file(self) -> Path:
        """Addresses, process ids and the key of the run, as JSON; readable by its user alone."""
        return self.path / "run.json"

    def link(self, folder: str, links: dict[str, Path]) -> Path:
        """Make `folder` of links to files elsewhere."""
        target = self.path / folder
        target.mkdir(parents=True)
        for name, source in links.items():
            (target / name).symlink_to(source)
        return target

    def write_state(self, state: dict[str, Any]) -> None:
        """Replace the state in one step."""
        write_json(self.state_file, state)

    def clear_shared_memory(self) -> list[str]:
        """Delete what the run left in /dev/shm; returns the names."""
        names = [entry.name for entry in SHARED_MEMORY.glob(f"{self.shm_prefix}*")]
        for name in names:
            (SHARED_MEMORY / name).unlink(missing_ok=True)
        return names

    def remove(self) -> None:
        """Clear shared memory and delete the folder."""
        self.clear_shared_memory()
        shutil.rmtree(self.path, ignore_errors=True)


def runs_root() -> Path:
    """The folder of this user's runs, private because the runs' keys are in it.

    Raises:
        ServingError: something else stands there. Whoever made it could read the keys, or plant code that stubs load.
    """
    root = Path(tempfile.gettempdir()) / f"alexnet-triton-{os.getuid()}"
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise ServingError(
            f"{root} is not a folder that you own and only you may enter (mode 0700): remove it, or set TMPDIR"
        )
    return root


def create_run() -> tuple[RunDir, int]:
    """A new run folder and its lock's file descriptor: the run is alive while any process has that open."""
    with _root_locked() as root:
        path = root / secrets.token_hex(6)
        path.mkdir(mode=0o700)
        lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return RunDir(path), lock


def alive_runs() -> list[RunDir]:
    """Runs whose lock is held."""
    with _root_locked() as root:
        return [run for run in _runs(root) if _alive(run)]


def clear_dead_runs() -> list[str]:
    """Delete the folders and the shared memory of runs that nobody holds any more; returns their names."""
    with _root_locked() as root:
        dead = [run for run in _runs(root) if not _alive(run)]
        for run in dead:
            run.remove()
        return [run.path.name for run in dead]


@contextmanager
def _root_locked() -> Iterator[Path]:
    root = runs_root()
    with (root / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield root


def _runs(root: Path) -> list[RunDir]:
    return [RunDir(path) for path in sorted(root.iterdir()) if path.is_dir()]


def _alive(run: RunDir) -> bool:
    try:
        with (run.path / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@dataclass(frozen=True)
class RunningServer:
    """A live server of this user, whoever started it."""

    directory: RunDir
    state: dict[str, Any]

    @property
    def name(self) -> str:
        return self.directory.path.name

    @property
    def control(self) -> Control:
        ports = self.state["ports"]
        grpc_port = 0 if self.state["tls"] else ports["grpc"]
        return Control(self.state["host"], ports["http"], self.state["key"], grpc_port, ports["metrics"])

    def describe(self, healthy: bool) -> str:
        """One line: name, health, addresses, process, repository."""
        ports, host = self.state["ports"], self.state["host"]
        return (
            f"{self.name}  {'healthy' if healthy else 'unhealthy'}  "
            f"http://{host}:{ports['http']}  grpc://{host}:{ports['grpc']}  "
            f"pid {self.state['tritonserver']}  {self.state['repository']} ({self.state['variant']})"
        )

    def is_healthy(self) -> bool:
        """Whether the server works, by the rule of `check_health`."""
        try:
            repository = Repository.open(self.state["repository"], self.state["variant"])
            check_health(self.control, repository)
        except ServingError:
            return False
        return True

    def stop(self) -> None:
        """End it and wait until nothing of it is left.

        Raises:
            ServingError: it is still there after `STOP_TIMEOUT_S`.
        """
        with suppress(ProcessLookupError):
            os.kill(self.state["owner"] if self.state["watched"] else self.state["supervisor"], signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.name in {run.path.name for run in alive_runs()}:
            if time.monotonic() > deadline:
                raise ServingError(f"{self.name} still runs: end process {self.state['supervisor']} yourself")
            time.sleep(0.1)


def find_runs() -> list[RunningServer]:
    """This user's live servers; one that is just being started has no state yet and is left out."""
    runs = []
    for directory in alive_runs():
        with suppress(FileNotFoundError, ValueError):
            runs.append(RunningServer(directory, json.loads(directory.state_file.read_text())))
    return runs
