"""The folder of each running server of this user, with its links, log and state; finding and ending servers.

A server also announces itself in its repository, so that a publication finds those of other containers.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_triton.serving.control import Control, check_health
from alexnet_triton.serving.errors import ServingError
from alexnet_triton.serving.repository import Repository
from alexnet_triton.serving.supervisor import clear_shared_memory

SERVERS = ".servers"  # of a repository: a file for each server on it
WILDCARDS = ("0.0.0.0", "::", "")
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

    def remove(self) -> None:
        """Clear shared memory and delete the folder."""
        clear_shared_memory(self.shm_prefix)
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
    rights = stat.S_IMODE(found.st_mode) & ~stat.S_ISGID  # inherited of a volume of Kubernetes, and opens nothing
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or rights != 0o700:
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


def clear_dead_runs() -> None:
    """Delete the folders and the shared memory of runs that nobody holds any more."""
    with _root_locked() as root:
        for run in _runs(root):
            if not _alive(run):
                run.remove()


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


def control_of(state: dict[str, Any]) -> Control:
    """A client of the server with this state."""
    ports = state["ports"]
    return Control(state["host"], ports["http"], state["key"], 0 if state["tls"] else ports["grpc"], ports["metrics"])


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
        return control_of(self.state)

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


class Announcement:
    """A server's file in its repository. The server holds the file's lock: without that, the file is stale."""

    def __init__(self, repository: Path, name: str, state: dict[str, Any]) -> None:
        """Announce a server by its run's name and state; only its user may read the key in it.

        Raises:
            OSError: the repository cannot be written.
        """
        self.path = repository / SERVERS / f"{name}.json"
        self.path.parent.mkdir(exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}")
        self._descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            told = {
                "host": _reachable(state["host"]),
                **{key: state[key] for key in ("ports", "key", "tls", "variant")},
            }
            os.write(self._descriptor, json.dumps(told).encode())
            temporary.replace(self.path)
        except BaseException:
            os.close(self._descriptor)
            raise

    def remove(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _reachable(host: str) -> str:
    """An address that other containers reach too, where a server listens on all of its own."""
    if host in WILDCARDS:
        with suppress(OSError):
            return socket.gethostbyname(socket.gethostname())
        return "127.0.0.1"
    return host


@dataclass(frozen=True)
class FoundServer:
    """A live server on a repository, here or in a container."""

    name: str
    control: Control
    variant: str


def find_servers(repository: Path) -> list[FoundServer]:
    """The live servers on a repository, by whatever path they name it: this user's, and those announced in it.

    Raises:
        ServingError: one is another user's, whose key cannot be read.
    """
    own = [run for run in find_runs() if _same(run.state["repository"], repository)]
    found = {run.name: FoundServer(run.name, run.control, run.state["variant"]) for run in own}
    for path in sorted((repository / SERVERS).glob("[!.]*.json")):
        state = _read_announcement(path)
        if state:
            found.setdefault(path.stem, FoundServer(path.stem, control_of(state), state["variant"]))
    return list(found.values())


def _same(path: str, repository: Path) -> bool:
    try:
        return repository.samefile(path)
    except OSError:
        return False


def _read_announcement(path: Path) -> dict[str, Any] | None:
    """What a live server announces; a stale file is removed."""
    try:
        with path.open() as file:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
                return None
            return json.load(file)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ServingError(f"{path}: a server of another user; publish as that user, or remove the file") from error
