"""A real tritonserver on a built repository, as a context manager."""

import os
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from alexnet_triton.common.files import WriteError, write_json
from alexnet_triton.common.provenance import gpu_fault, gpu_names, installed_gpus, usable_cores
from alexnet_triton.serving.control import Control, ask_reference_image, check_health, drain
from alexnet_triton.serving.errors import (
    BackendAbortError,
    ControlError,
    InstallationError,
    PortTakenError,
    RepositoryError,
    ServingError,
    StartError,
    WrongAnswerError,
)
from alexnet_triton.serving.launch import (
    GPU_START_TIMEOUT_S,
    PACKAGE,
    START_TIMEOUT_S,
    VARIABLES,
    Ports,
    ServerConfig,
    build_command,
    build_environment,
    find_installation,
    hide_argument,
    settle_ports,
    widen_queues,
)
from alexnet_triton.serving.repository import Repository, instance_count, locked, needs_gpu, settle_versions
from alexnet_triton.serving.runs import Announcement, RunDir, clear_dead_runs, create_run
from alexnet_triton.serving.supervisor import SHARED_MEMORY, Stub, SupervisedProcess, read_end

Event = Callable[..., None]  # the event's name, then its details by keyword
_POLL_S = 0.05
START_ATTEMPTS = 5
LOCK_WAIT_S = 10.0  # for a publication; then the server starts on what is there
OUTGOING_S = 3.0  # a replaced model has answered or refused by then what waited in its queue
DRAIN_S = 6.0  # at most, for requests in flight


def ignore_event(name: str, **details: object) -> None:
    """What a server without a watcher does with its events."""


class Server:
    """A tritonserver that answers rightly from `start` on, and leaves nothing behind after `stop`.

        with Server("artifacts/model_repository", http_port=0, grpc_port=0, metrics_port=0) as server:
            print(server.http_address)

    It also ends when this process is killed. Not for several threads at once.
    """

    def __init__(
        self, repository: str | Path = "artifacts/model_repository", *, event: Event = ignore_event, **settings: Any
    ) -> None:
        """Starts nothing yet.

        Args:
            event: hears of starts that are tried again and of requests that a stop cuts.
            settings: those of `ServerConfig`.
        """
        self.config = ServerConfig(Path(repository), **settings)
        self.ports: Ports = {}
        self._event = event
        self.key = secrets.token_hex(16)
        self.watched = False  # whether this process restarts it: then stopping it means stopping this process
        self._process: SupervisedProcess | None = None
        self._run: RunDir | None = None
        self._announcement: Announcement | None = None
        self._answered = False  # rightly, once since its start
        self._gpus = 0  # that its models have instances on
        self._cores: int | None = None  # that it was started for
        self.aborts = 0  # starts that the Python backend aborted, and that were tried again
        self._stubs: dict[int, Stub] = {}  # every one that was seen alive
        self._outgoing: dict[tuple[int, Stub], float] = {}  # of models that were replaced, and when they may be ended
        self.cut_drains = 0  # stops that did not wait for every request in flight

    def start(self) -> None:
        """Start, and return when the reference image gets its reference answer.

        Raises:
            InstallationError, RepositoryError, PortTakenError: before anything is started.
            StartError: tritonserver ended, or gave no right answer in the configuration's `start_timeout_s`.
        """
        if self._process:
            raise ServingError("this server runs already: stop it first")
        if self.config.tls:
            self.config.tls.check()
        self.ports = settle_ports(self.config.host, self.config.ports)
        try:
            self._start()
        except PortTakenError as error:
            if error.port in self.config.ports.values():
                raise
            self.ports = settle_ports(self.config.host, self.config.ports)  # one of the free ports was taken meanwhile
            self._start()

    def restart(self) -> None:
        """Start anew on the same addresses, without waiting for what is left of the server before.

        Raises:
            as `start`.
        """
        self._answered = False
        if self._process:
            self._process.kill()
        self.stop()
        settle_ports(self.config.host, self.ports)
        self._start()

    def _start(self) -> None:
        """Start; try again when the Python backend aborts, as Triton 2.51 now and then does on a busy machine."""
        with _no_publication(self.config.repository):
            for _ in range(START_ATTEMPTS - 1):
                try:
                    return self._start_once()
                except BackendAbortError as error:
                    self.aborts += 1
                    self._event("start aborted", reason=str(error), starts=self.aborts)
            return self._start_once()

    def _start_once(self) -> None:
        self._cores = usable_cores()
        self.repository = Repository.open(self.config.repository, self.config.variant, self._cores)
        installation = find_installation(self.config.tritonserver)
        self._gpus = _count_gpus(self.repository)
        clear_dead_runs()
        self._run, lock = create_run()
        self._stubs, self._outgoing = {}, {}
        try:
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            self.log_path.touch()
            backends = self._run.path / "backends" if installation.wheel else None
            if backends:
                self._run.link("backends/python", installation.backend_links())
            modules = self._run.link("modules", {"alexnet_triton": PACKAGE})
            program = (installation.binary, backends)
            command = build_command(*program, self.repository, self.config, self.ports, self.key, self._run.shm_prefix)
            self._log_start = self.log_path.stat().st_size
            with self.log_path.open("ab") as log:
                environment = build_environment(installation, modules)
                self._process = SupervisedProcess(command, environment, log, self._run.shm_prefix, lock)
            state = self._write_state()
            self._wait_until_healthy()
            self._answered = True
            with suppress(OSError):  # a repository that cannot be written is served all the same
                self._announcement = Announcement(self.repository.path, self._run.path.name, state)
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(lock)

    def stop(self) -> None:
        """End the server: it answers requests in flight, refuses new ones, and leaves nothing behind."""
        process, self._process = self._process, None
        run, self._run = self._run, None
        announcement, self._announcement = self._announcement, None
        if announcement:
            announcement.remove()
        if process:
            if self._answered:
                self._drain()
                process.end_soon()
            process.stop()
        self._answered = False
        if run:
            run.remove()

    def _drain(self) -> None:
        self._reopen()
        if not drain(self.control, self.repository, DRAIN_S):
            self.cut_drains += 1
            self._event("requests cut", reason=f"a model was still loaded {DRAIN_S:g} s after the order to stop")

    def check(self, timeout_s: float = 5.0) -> None:
        """Ask for one of the reference images, at the priority that overtakes what waits.

        Raises:
            ControlError: no answer.
            WrongAnswerError: a wrong one.
        """
        ask_reference_image(self.control, self.repository, timeout_s, priority=1)

    def check_health(self, timeout_s: float, patience_s: float) -> bool:
        """As `control.check_health`, of this server and of what is published to its repository now."""
        self._reopen()
        return check_health(self.control, self.repository, timeout_s, patience_s)

    def _reopen(self) -> None:
        with suppress(RepositoryError):  # while it is written to
            # Triton keeps the instances that it started with, though a pod may be given other cores meanwhile.
            self.repository = Repository.open(self.config.repository, self.config.variant, self._cores)

    def heal(self, model: str, timeout_s: float) -> None:
        """Replace a model that misses a stub: Triton never starts one again, and calls the model ready.

        Triton frees nothing of a model whose stub died, so `end_outgoing` ends the stubs that it has left.

        Raises:
            ControlError: as `Control.replace`.
        """
        old = {pid: stub for pid, stub in self._stubs.items() if stub.model == model}
        self.control.replace(model, timeout_s)
        self._outgoing |= dict.fromkeys(old.items(), time.monotonic() + OUTGOING_S)

    def end_outgoing(self) -> None:
        """End the stubs of replaced models, once every request that they may have is answered."""
        live = self._process.stubs() if self._process else {}
        for pid, stub in [old for old, due in self._outgoing.items() if time.monotonic() > due]:
            if live.get(pid) == stub:
                os.kill(pid, signal.SIGKILL)
            (SHARED_MEMORY / stub.memory).unlink(missing_ok=True)
            del self._outgoing[pid, stub]

    def missing_stubs(self) -> list[str]:
        """Models with fewer live stubs than instances."""
        alive = Counter(stub.model for stub in self._live_stubs().values())
        return sorted(
            name
            for name, config in self.repository.configs.items()
            if config.backend == "python"
            and alive[name] < instance_count(config, self._gpus) * self._loaded_versions(name)
        )

    def _loaded_versions(self, model: str) -> int:
        try:
            return len(self.control.versions(model))
        except ControlError:
            return 0

    def wait(self, timeout_s: float) -> bool:
        """Whether tritonserver has ended, after at most `timeout_s`."""
        return self._process is None or self._process.ended(timeout_s)

    @property
    def control(self) -> Control:
        grpc_port = 0 if self.config.tls else self.ports["grpc"]
        return Control(self.config.host, self.ports["http"], self.key, grpc_port, self.ports["metrics"])

    @property
    def http_address(self) -> str:
        return f"{self.config.host}:{self.ports['http']}"

    @property
    def grpc_address(self) -> str:
        return f"{self.config.host}:{self.ports['grpc']}"

    @property
    def metrics_address(self) -> str:
        return f"{self.config.host}:{self.ports['metrics']}"

    @property
    def pid(self) -> int:
        """Tritonserver's process id."""
        assert self._process, "the server does not run"
        return self._process.pid

    def stubs(self) -> list[int]:
        """Process ids of the Python backend's stubs."""
        return list(self._live_stubs())

    def _live_stubs(self) -> dict[int, Stub]:
        found = self._process.stubs() if self._process else {}
        self._stubs |= found
        return {pid: stub for pid, stub in found.items() if (pid, stub) not in self._outgoing}

    @property
    def log_path(self) -> Path:
        if self.config.log:
            return Path(self.config.log)
        assert self._run, "the server does not run"
        return self._run.path / "triton.log"

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _write_state(self) -> dict[str, Any]:
        assert self._run
        assert self._process
        state = {
            "repository": str(self.repository.path),
            "variant": self.repository.variant,
            "host": self.config.host,
            "ports": self.ports,
            "key": self.key,
            "tls": self.config.tls is not None,
            "owner": os.getpid(),
            "watched": self.watched,
            "supervisor": self._process.supervisor_pid,
            "tritonserver": self._process.pid,
            "log": str(self.log_path),
        }
        write_json(self._run.state_file, state)
        return state

    def _wait_until_healthy(self) -> None:
        assert self._process
        deadline = time.monotonic() + self._start_timeout_s
        while not self._process.ended(_POLL_S):
            if self.control.ready():
                hide_argument(self._process.pid, self.key)
                widen_queues(self._process.pid)
                return self._check_first_answer()
            if time.monotonic() > deadline:
                raise StartError(
                    f"not ready after {self._start_timeout_s:g} s: see {self._log_to_see()}, or give it longer with "
                    "--start-timeout"
                )
        raise self._explain_end()

    def _check_first_answer(self) -> None:
        try:
            ask_reference_image(self.control, self.repository, self._start_timeout_s, priority=1, every=True)
        except (ControlError, WrongAnswerError) as error:
            raise StartError(f"classify does not answer rightly: {error}") from error

    @property
    def _start_timeout_s(self) -> float:
        return self.config.start_timeout_s or (GPU_START_TIMEOUT_S if self._gpus else START_TIMEOUT_S)

    def _explain_end(self) -> ServingError:
        """Why tritonserver ended by itself, from its log."""
        end = read_end(self.log_path, self._log_start)
        for name, number in self.ports.items():
            if number == end.taken_port:
                return PortTakenError(self.config.host, number, VARIABLES[name])
        if end.backend_aborted:
            return BackendAbortError(f"Triton's Python backend aborted at the start: see {self._log_to_see()}")
        return StartError(f"tritonserver ended at its start: {end.reason}; see {self._log_to_see()}")

    def _log_to_see(self) -> str:
        return str(self.config.log) if self.config.log else "its log (name one with log=FILE to keep it)"


def _count_gpus(repository: Repository) -> int:
    """The GPUs that models of a repository have instances on, 0 where none has.

    Raises:
        InstallationError: a model has, and there is no GPU, or its driver is too old.
    """
    if not needs_gpu(repository.configs.values()):
        return 0
    gpus = installed_gpus()
    if not gpus and gpu_names():  # a container may have the GPU, and not the driver's programs
        return len(gpu_names())
    if fault := gpu_fault(gpus):
        raise InstallationError(f"{fault}, or serve on the processor with --variant cpu")
    return len(gpus)


@contextmanager
def _no_publication(repository: Path) -> Iterator[None]:
    """Wait for a publication, end the switch that an interrupted one left, and keep others away meanwhile.

    Where the repository cannot be written, or a publication hangs, the server starts on what is there.
    """
    with ExitStack() as stack:
        with suppress(OSError, RepositoryError, WriteError):
            Repository.open(repository, "cpu")  # in what is no repository there is nothing to lock
            stack.enter_context(locked(repository, "alexnet-triton serve", shared=True, timeout_s=LOCK_WAIT_S))
            settle_versions(repository)
        yield
