"""The command line and the environment that tritonserver is started with."""

import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from serving.control import KEY_HEADER
from serving.installation import PROJECT_ROOT, Installation
from serving.ports import Ports
from serving.repository import Repository
from serving.tls import Tls

# Open to whoever reaches the port, these let a caller map the server's memory (CVE-2025-23319, 23320, 23334), change
# what is served, or name the file that logs and traces are written to.
CLOSED_APIS = "shared-memory,model-repository,logging,trace"
EXIT_TIMEOUT_S = 7  # for requests in flight; below the keeper's grace
# An image's pixels are just above the size for which glibc asks the kernel for fresh pages, and gives them back
# after use: 76 page faults an image. Kept in the heap instead, there are none, and 6 % more images a second.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
# More than half the cores for reading requests would, when there are too many, refuse them faster than the models
# answer the others: refusing costs a twentieth of answering, and callers ask again at once.
HTTP_THREADS = max(1, (os.cpu_count() or 1) // 2)
SHM_BYTES = 16 * 2**20  # a Python backend instance: a batch of images in, its answers out


@dataclass(frozen=True)
class ServerConfig:
    """How a server is started. A port of 0 means any that is free."""

    repository: Path
    variant: str = "cpu"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    tritonserver: str | None = None
    log: Path | None = None
    start_timeout_s: float = 60.0
    tls: Tls | None = None

    @property
    def ports(self) -> Ports:
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}


def build_command(
    binary: Path,
    repository: Repository,
    host: str,
    ports: Ports,
    key: str,
    shm_prefix: str,
    backends: Path | None,
    tls: Tls | None = None,
) -> list[str]:
    """The command line: explicit models, one address, the control interfaces closed to all without `key`."""
    flags: dict[str, object] = {
        "model-repository": repository.path,
        "model-control-mode": "explicit",  # loading and unloading, to publish and to heal
        "exit-on-error": "true",
        # Else a publication that was refused would make the whole server "not ready" from then on.
        "strict-readiness": "false",
        "exit-timeout-secs": EXIT_TIMEOUT_S,
        "http-address": host,
        "grpc-address": host,
        "metrics-address": host,
        "http-thread-count": HTTP_THREADS,
        **{f"{name}-port": port for name, port in ports.items()},
        "http-restricted-api": f"{CLOSED_APIS}:{KEY_HEADER}={key}",
        "grpc-restricted-protocol": f"{CLOSED_APIS}:{KEY_HEADER}={key}",
        "allow-sagemaker": "false",
        "allow-vertex-ai": "false",
        "metrics-config": "summary_latencies=true",
        "log-format": "ISO8601",
    }
    if repository.variant != "gpu":
        flags |= {"model-config-name": repository.variant, "allow-gpu-metrics": "false"}
    if tls:
        flags |= tls.flags()
    if backends:
        flags["backend-directory"] = backends
    return [
        str(binary),
        "--disable-auto-complete-config",  # the configurations are complete, and fewer stubs are started
        *(f"--{name}={value}" for name, value in flags.items()),
        *(f"--load-model={name}" for name in repository.configs),
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
    ]


def build_environment(installation: Installation) -> dict[str, str]:
    """This process's environment, with what the server and its stubs have to find."""
    environment = dict(os.environ)
    _prepend(environment, "LD_LIBRARY_PATH", installation.library_dirs)
    _prepend(environment, "PATH", [Path(sys.prefix) / "bin"])  # the stub looks up python3 to find its library
    _prepend(environment, "PYTHONPATH", [PROJECT_ROOT, Path(sysconfig.get_path("purelib"))])
    environment |= {name: environment.get(name, value) for name, value in MALLOC.items()}
    # A file written beside a model.py would make Triton take the model for changed.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return environment


def _prepend(environment: dict[str, str], name: str, folders: list[Path]) -> None:
    parts = [*map(str, folders), environment.get(name, "")]
    environment[name] = os.pathsep.join(part for part in parts if part)
