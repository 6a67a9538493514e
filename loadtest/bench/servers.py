"""The servers that are measured: each is started as its user would start it, and stopped afterwards."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from alexnet_triton.common.infer_request import HEADER_LENGTH, infer_path
from alexnet_triton.loadtest.bench.config import BATCH, ROOT, BenchConfig, BenchError
from alexnet_triton.serving.control import Control

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
_PEER_MODULES = "alexnet_triton.loadtest.bench.peers"
# Command lines for the Python of the peers' environment. Other settings: in the peers' modules and in SETTINGS.
PEERS = {
    "BentoML": f"-m bentoml serve {_PEER_MODULES}.bento:Front --host 127.0.0.1 --port {{port}}",
    "Ray Serve": f"-m {_PEER_MODULES}.ray_serve",
    "LitServe": f"-m {_PEER_MODULES}.lit",
    "FastAPI, fp32": f"-m {_PEER_MODULES}.plain",
}
SETTINGS = {
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",  # docs.ray.io, Serve's performance tuning
    # What RAY_SERVE_THROUGHPUT_OPTIMIZED sets, except direct ingress, which needs a proxy in front of it.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
}
TRITON_PATH = infer_path("classify")
TRITON_HEADERS = {HEADER_LENGTH: "0"}  # the body is the image alone, without a JSON header


@dataclass(frozen=True)
class Triton:
    """A running `alexnet-triton serve` and its addresses, HOST:PORT."""

    process: subprocess.Popen[str]
    http: str
    grpc: str

    @property
    def url(self) -> str:
        """Where JPEGs are posted to."""
        return f"http://{self.http}{TRITON_PATH}"

    @property
    def control(self) -> Control:
        """A client for single requests."""
        host, _, port = self.http.rpartition(":")
        return Control(host, int(port))


@contextmanager
def triton(repository: Path, folder: Path) -> Iterator[Triton]:
    """Run this project's server with its watcher on free ports; its logs are written to `folder`.

    Raises:
        BenchError: it does not start.
    """
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "alexnet_triton", "serve", "--repository", str(repository), *ports]
    log = folder / "serving.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--log", str(folder / "tritonserver.log")], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    with process, _stopped(process):
        yield _wait_for_addresses(process, log)


def _wait_for_addresses(process: subprocess.Popen[str], log: Path) -> Triton:
    assert process.stdout
    for line in process.stdout:
        if line.startswith("Ready:"):
            http, grpc = (word.split("://")[1] for word in line.split()[1:3])
            return Triton(process, http, grpc)
    raise BenchError(f"the server did not start: see {log}")


@contextmanager
def peer(name: str, config: BenchConfig) -> Iterator[str]:
    """Run another server; yields its URL.

    Raises:
        BenchError: the peers' environment is missing, or the server does not answer.
    """
    python = config.peers_python.absolute()  # not resolved: the link is what makes it the environment's Python
    if not python.is_file():
        raise BenchError(f"no {config.peers_python}: run `make bench`, or name the peers' Python with --peers-python")
    port, log = free_port(), config.folder / f"{name.split(',')[0].lower().replace(' ', '-')}.log"
    with tempfile.TemporaryDirectory() as scratch, log.open("w") as output:
        process = subprocess.Popen(
            [str(python), *PEERS[name].format(port=port).split()],
            cwd=scratch,
            env=_environment(config, port, scratch),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        with process, _stopped(process, group=True):
            url = f"http://127.0.0.1:{port}/classify"
            _wait_for_answer(url, (config.bodies / "000.jpg").read_bytes(), process, log)
            yield url


def _environment(config: BenchConfig, port: int, scratch: str) -> dict[str, str]:
    """The peers' environment has no alexnet_triton installed: a link in `scratch`, on PYTHONPATH, stands for it."""
    (Path(scratch) / "alexnet_triton").symlink_to(ROOT)
    own = {"BENCH_NETWORK": str(config.network), "BENCH_BATCH": str(BATCH), "PORT": str(port), "PYTHONPATH": scratch}
    return {**os.environ, **SETTINGS, **own, "BENTOML_HOME": scratch, "RAY_TMPDIR": scratch}


@contextmanager
def _stopped(process: subprocess.Popen, group: bool = False) -> Iterator[None]:
    """Stop a program at the end of the block, and its process group where it leads one."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        if group:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()


def _wait_for_answer(url: str, body: bytes, process: subprocess.Popen, log: Path) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"})
    deadline = time.monotonic() + START_TIMEOUT_S
    answer = b""
    while b"probability" not in answer:
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"{url} does not answer: see {log}")
        time.sleep(0.2)
        with suppress(OSError), urllib.request.urlopen(request, timeout=10) as response:
            answer = response.read()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
