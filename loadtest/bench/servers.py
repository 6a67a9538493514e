"""The servers that are measured, each started as its user would start it, and gone afterwards."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from alexnet_triton.loadtest.bench.config import BATCH, ROOT, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.wrk import Addresses

START_TIMEOUT_S = 120.0
# Programs of the peers' environment. Their settings are in their modules, and here where they are environment.
PEERS = {
    "BentoML": [
        "-m",
        "bentoml",
        "serve",
        "alexnet_triton.loadtest.bench.peers.bento:Front",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
    ],
    "Ray Serve": ["-m", "alexnet_triton.loadtest.bench.peers.ray_serve"],
    "LitServe": ["-m", "alexnet_triton.loadtest.bench.peers.lit"],
    "FastAPI, fp32": ["-m", "alexnet_triton.loadtest.bench.peers.plain"],
}
SETTINGS = {
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",  # docs.ray.io, Serve's performance tuning
    # What RAY_SERVE_THROUGHPUT_OPTIMIZED sets, but for direct ingress, which wants a proxy of its own in front.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
}
# What a raw body needs beside itself: Triton's binary extension, with no JSON before the bytes.
TRITON_HEADERS = {"Inference-Header-Content-Length": "0"}
TRITON_PATH = "/v2/models/classify/infer"


@dataclass(frozen=True)
class Triton:
    """`python -m serving run`, as it says that it runs."""

    process: subprocess.Popen[str]
    addresses: Addresses

    @property
    def url(self) -> str:
        return f"http://{self.addresses.http}{TRITON_PATH}"


@contextmanager
def triton(repository: Path, folder: Path) -> Iterator[Triton]:
    """This project's server with its watcher, on free ports; its log is kept in `folder`.

    Raises:
        BenchError: it does not start.
    """
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "serving", "run", "--repository", str(repository), *ports]
    process = subprocess.Popen(
        [*command, "--log", str(folder / "tritonserver.log")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=(folder / "alexnet_triton.serving.supervisor").open("w"),
        text=True,
    )
    with process, _ended(process):
        yield Triton(process, _addresses(process, folder))


def _addresses(process: subprocess.Popen[str], folder: Path) -> Addresses:
    assert process.stdout
    for line in process.stdout:
        if line.startswith("Ready:"):
            http, grpc = (word.split("://")[1] for word in line.split()[1:3])
            return Addresses(http, grpc)
    raise BenchError(f"the server did not start: see {folder}/serving.log")


@contextmanager
def peer(name: str, config: BenchConfig) -> Iterator[str]:
    """Another server; gives its URL.

    Raises:
        BenchError: its environment is not there, or it does not answer.
    """
    python = (ROOT / config.peers_python).absolute()  # not resolved: a link is what makes the environment
    if not python.is_file():
        raise BenchError(f"no {config.peers_python}: run `make bench`, or name the peers' Python with --peers-python")
    port, log = _free_port(), config.folder / f"{name.split(',')[0].lower().replace(' ', '-')}.log"
    command = [str(python), *(word.format(port=port) for word in PEERS[name])]
    with tempfile.TemporaryDirectory() as scratch, log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(config, port, scratch),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        with process, _ended(process, group=True):
            url = f"http://127.0.0.1:{port}/classify"
            _wait_for_answer(url, (config.bodies / "000.jpg").read_bytes(), process, log)
            yield url


def _environment(config: BenchConfig, port: int, scratch: str) -> dict[str, str]:
    (Path(scratch) / "alexnet_triton").symlink_to(ROOT)
    own = {"BENCH_NETWORK": str(config.network), "BENCH_BATCH": str(BATCH), "PORT": str(port), "PYTHONPATH": scratch}
    return {**os.environ, **SETTINGS, **own, "BENTOML_HOME": scratch, "RAY_TMPDIR": scratch}


@contextmanager
def _ended(process: subprocess.Popen, group: bool = False) -> Iterator[None]:
    """End a program on leaving, with its group where it has one of its own."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]
