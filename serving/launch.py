"""What tritonserver is started with: the installation found, ports, TLS, the command line and the environment."""

import ctypes
import errno
import importlib.util
import os
import random
import shutil
import socket
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alexnet_triton.common.provenance import usable_cores
from alexnet_triton.serving.control import KEY_HEADER
from alexnet_triton.serving.errors import InstallationError, PortTakenError, ServingError
from alexnet_triton.serving.repository import Repository, needs_gpu

Ports = dict[str, int]  # "http", "grpc", "metrics" -> port
VARIABLES = {"http": "HTTP_PORT", "grpc": "GRPC_PORT", "metrics": "METRICS_PORT"}
# Where a free port is looked for: below the ports that the kernel gives to outgoing connections (ip_local_port_range
# begins at 32,768), as such a connection can take the port before the server starts, or starts again.
FREE_PORTS = range(10_000, 30_000)
PACKAGE = Path(__file__).resolve().parent.parent  # alexnet_triton
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
# Open to whoever reaches the port, these let a caller map the server's memory (CVE-2025-23319, 23320, 23334), change
# what is served, or name the file that logs and traces are written to.
CLOSED_APIS = "shared-memory,model-repository,logging,trace"
# Until the first right answer. On a GPU CUDA, the plan, 8 graph captures an instance, and DALI come before it.
START_TIMEOUT_S, GPU_START_TIMEOUT_S = 60.0, 300.0
EXIT_TIMEOUT_S = 7  # for requests in flight; below the supervisor's grace
# An image's pixels are just above the size for which glibc asks the kernel for fresh pages, and gives them back
# after use: 76 page faults an image. Kept in the heap instead, there are none, and 6 % more images a second. Of many
# heaps each keeps the room of its own fullest moment: seven times 4,000 requests at once grew from 785 to 1,020 MiB.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_ARENA_MAX": "2"}
# Importing NumPy starts a thread a core for products of matrices, of which the stubs make none: 0.1 s of a core each.
BLAS = {"OPENBLAS_NUM_THREADS": "1"}
# More than half the cores for reading requests would, when there are too many, refuse them faster than the models
# answer the others: refusing costs a twentieth of answering, and callers ask again at once.
HTTP_CORES = 2  # a thread
SHM_BYTES = 16 * 2**20  # a Python backend instance: a batch of images in, its answers out
QUEUE_BYTES, PIDFD_GETFD = 2**22, 438  # wanted; the system call's number
# Quantiles of each server, and counts that can be added up over servers. A Triton before 26.01 has no histograms of
# models that are not decoupled, and none at all before 24.11 (core's metric_model_reporter.cc); it ignores the word.
LATENCIES = ("summary", "histogram")
_ARG_START, _ARG_END = 48, 49  # fields of /proc/pid/stat, counted from 1, proc(5)


@dataclass(frozen=True)
class Tls:
    """PEM files: the server's certificate and key; with `ca`, callers need a certificate that it signed."""

    cert: Path
    key: Path
    ca: Path | None = None

    def flags(self) -> dict[str, object]:
        """Tritonserver's flags."""
        names = {"grpc-server-cert": self.cert, "grpc-server-key": self.key}
        if self.ca is None:
            return {"grpc-use-ssl": "true", **names}
        return {"grpc-use-ssl-mutual": "true", **names, "grpc-root-cert": self.ca}

    def check(self) -> None:
        """Raises ServingError where a file is no PEM: tritonserver would say no more than that gRPC did not start."""
        for path in filter(None, (self.cert, self.key, self.ca)):
            try:
                text = path.read_text()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not text"
                raise ServingError(f"{path} cannot be read ({reason}): name a PEM file") from error
            if "-----BEGIN " not in text:
                raise ServingError(f"{path} is no PEM file: it has no -----BEGIN line")


def settle_ports(host: str, asked: Ports) -> Ports:
    """Check the ports that are asked for, and pick a free one for each 0.

    Raises:
        PortTakenError: another program listens there.
        ServingError: two services want the same port, or the host is not this machine's.
    """
    held: list[socket.socket] = []
    try:
        for name, port in asked.items():
            held.append(_bind(host, port, VARIABLES[name]))
        return {name: sock.getsockname()[1] for name, sock in zip(asked, held, strict=True)}
    finally:
        for sock in held:
            sock.close()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with _bind("127.0.0.1", 0, "") as free:
        return free.getsockname()[1]


def _bind(host: str, port: int, variable: str) -> socket.socket:
    """Held until all are settled, so that no two of them can be the same."""
    if port == 0:
        for candidate in random.SystemRandom().sample(FREE_PORTS, 100):
            with suppress(PortTakenError):
                return _bind_to(host, candidate, variable)
    return _bind_to(host, port, variable)


def _bind_to(host: str, port: int, variable: str) -> socket.socket:
    family, _, _, _, address = _resolve(host, port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection's wait is no user of the port
        sock.bind(address)
    except PermissionError as error:
        sock.close()
        raise ServingError(f"port {port} is not allowed to this user: set {variable} to one above 1023") from error
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ServingError(f"{host} is not an address of this machine") from error
        raise PortTakenError(host, port, variable) from error
    return sock


def _resolve(host: str, port: int) -> tuple:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ServingError(f"{host} is not an address: {error.strerror or error}") from error


@dataclass(frozen=True)
class Installation:
    """A tritonserver. `wheel` is the folder of nvidia-pytriton around it, None for an image of NVIDIA's."""

    binary: Path
    wheel: Path | None

    @property
    def library_dirs(self) -> list[Path]:
        """What LD_LIBRARY_PATH has to name."""
        if self.wheel is None:
            return []
        # The stub links libpython; the server links what the wheel's build tool put beside the package.
        return [self.wheel.parents[1] / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]

    def backend_links(self) -> dict[str, Path]:
        """Name in the Python backend's folder -> file of the wheel.

        Raises:
            InstallationError: the wheel has no stub for this Python.
        """
        assert self.wheel is not None
        backend = self.wheel / "backends" / "python"
        stub = self.wheel / "python_backend_stubs" / PYTHON_VERSION / "triton_python_backend_stub"
        if not stub.is_file():
            raise InstallationError(f"nvidia-pytriton has nothing for Python {PYTHON_VERSION}: use 3.10, 3.11 or 3.12")
        files = [backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub]
        return {file.name: file for file in files}


def find_installation(binary: str | Path | None = None) -> Installation:
    """Find tritonserver: `binary`, the environment's TRITONSERVER, the wheel nvidia-pytriton, PATH.

    Raises:
        InstallationError: none of them, or the one asked for cannot be run.
    """
    if asked := binary or os.environ.get("TRITONSERVER"):
        path = Path(asked)
        if not os.access(path, os.X_OK) or path.is_dir():
            raise InstallationError(f"{asked} is not a program: name a tritonserver binary, or leave it to be found")
        return _describe(path)
    for path in _candidates():
        if os.access(path, os.X_OK):
            return _describe(path)
    raise InstallationError("no tritonserver: run `make setup`, or name one with TRITONSERVER")


def _candidates() -> Iterator[Path]:
    wheel = importlib.util.find_spec("pytriton")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        yield Path(folder) / "tritonserver" / "bin" / "tritonserver"
    if on_path := shutil.which("tritonserver"):
        yield Path(on_path)


def _describe(binary: Path) -> Installation:
    binary = binary.resolve()
    folder = binary.parents[1]
    return Installation(binary, folder if (folder / "python_backend_stubs").is_dir() else None)


@dataclass(frozen=True)
class ServerConfig:
    """How a server is started.

    Attributes:
        http_port, grpc_port, metrics_port: 0 means any free one.
        tritonserver: the program; None has it found, as `find_installation` says.
        log: tritonserver's log; None keeps it only while the server runs.
        start_timeout_s: None means START_TIMEOUT_S, and for models on a GPU GPU_START_TIMEOUT_S.
        tls: for gRPC.
    """

    repository: Path
    variant: str = "cpu"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    tritonserver: str | Path | None = None
    log: str | Path | None = None
    start_timeout_s: float | None = None
    tls: Tls | None = None

    @property
    def ports(self) -> Ports:
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}


def build_command(
    binary: Path,
    backends: Path | None,
    repository: Repository,
    config: ServerConfig,
    ports: Ports,
    key: str,
    shm_prefix: str,
) -> list[str]:
    """The command line: explicit models, one address, the control interfaces closed to all without `key`."""
    flags: dict[str, object] = {
        "model-repository": repository.path,
        "model-control-mode": "explicit",  # loading and unloading, to publish and to heal
        "exit-on-error": "true",
        # Else a publication that was refused would make the whole server "not ready" from then on.
        "strict-readiness": "false",
        "exit-timeout-secs": EXIT_TIMEOUT_S,
        "http-address": config.host,
        "grpc-address": config.host,
        "metrics-address": config.host,
        "http-thread-count": max(1, usable_cores() // HTTP_CORES),
        **{f"{name}-port": port for name, port in ports.items()},
        "http-restricted-api": f"{CLOSED_APIS}:{KEY_HEADER}={key}",
        "grpc-restricted-protocol": f"{CLOSED_APIS}:{KEY_HEADER}={key}",
        "allow-sagemaker": "false",
        "allow-vertex-ai": "false",
        "log-format": "ISO8601",
    }
    if repository.variant != "gpu":
        flags["model-config-name"] = repository.variant
    if not needs_gpu(repository.configs.values()):
        flags["allow-gpu-metrics"] = "false"
    if config.tls:
        flags |= config.tls.flags()
    if backends:
        flags["backend-directory"] = backends
    return [
        str(binary),
        "--disable-auto-complete-config",  # the configurations are complete, and fewer stubs are started
        *(f"--{name}={value}" for name, value in flags.items()),
        *(f"--load-model={name}" for name in repository.configs),
        *(f"--metrics-config={kind}_latencies=true" for kind in LATENCIES),
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
    ]


def build_environment(installation: Installation, modules: Path) -> dict[str, str]:
    """This process's environment, with what the server and its stubs have to find.

    `modules` is a folder with a link to `alexnet_triton` in it: the stubs know nothing of an editable installation.
    """
    environment = dict(os.environ)
    _prepend(environment, "LD_LIBRARY_PATH", installation.library_dirs)
    _prepend(environment, "PATH", [Path(sys.prefix) / "bin"])  # the stub looks up python3 to find its library
    _prepend(environment, "PYTHONPATH", [modules])
    _append(environment, "PYTHONPATH", [Path(sysconfig.get_path("purelib"))])  # last, as for this process
    environment |= {name: environment.get(name, value) for name, value in (MALLOC | BLAS).items()}
    # A file written beside a model.py would make Triton take the model for changed.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return environment


def _prepend(environment: dict[str, str], name: str, folders: list[Path]) -> None:
    _join(environment, name, [*map(str, folders), environment.get(name, "")])


def _append(environment: dict[str, str], name: str, folders: list[Path]) -> None:
    _join(environment, name, [environment.get(name, ""), *map(str, folders)])


def _join(environment: dict[str, str], name: str, parts: list[str]) -> None:
    environment[name] = os.pathsep.join(part for part in parts if part)


def widen_queues(pid: int) -> None:
    """Let tritonserver hear of 10,900 answers at once, not of 277, where the kernel allows it. See pidfd_getfd(2).

    An HTTP thread is told of each over a pair of sockets, and forgets what finds no room there.
    """
    with suppress(OSError), os.fdopen(os.pidfd_open(pid)) as process:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError, ValueError):
                if entry.readlink().name.startswith("socket:"):
                    copy = ctypes.CDLL(None).syscall(PIDFD_GETFD, process.fileno(), int(entry.name), 0)
                    with socket.socket(fileno=copy) as queue:
                        if queue.family == socket.AF_UNIX:
                            queue.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE_BYTES)


def hide_argument(pid: int, secret: str) -> None:
    """Overwrite `secret` in the command line of a child process, where the kernel allows it.

    Tritonserver takes the run's key on its command line and nowhere else, and any user of the machine can read that.
    """
    process, wanted = Path(f"/proc/{pid}"), secret.encode()
    with suppress(OSError):
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        start, end = (int(fields[number - 3]) for number in (_ARG_START, _ARG_END))
        with (process / "mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            memory.seek(start)
            memory.write(arguments.replace(wanted, b"*" * len(wanted)))
