"""The servers that are measured: each is started as its user would start it, and stopped afterwards."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from alexnet_triton.common.infer_request import HEADER_LENGTH, infer_path
from alexnet_triton.loadtest.bench.config import ROOT, BenchConfig, BenchError
from alexnet_triton.loadtest.bench.peers import SETTINGS, Settings
from alexnet_triton.serving.control import Control
from alexnet_triton.serving.launch import GPU_START_TIMEOUT_S, free_port

START_TIMEOUT_S = 120.0
TRITON_START_TIMEOUT_S = GPU_START_TIMEOUT_S + 10  # by then it has given up itself
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
_PEER_MODULES = "alexnet_triton.loadtest.bench.peers"
# Command lines for the Python of the peers' environment. Other settings: in the peers' modules and in ENVIRONMENT.
PEERS = {
    "BentoML": f"-m bentoml serve {_PEER_MODULES}.bento:Front --host 127.0.0.1 --port {{port}}",
    "Ray Serve": f"-m {_PEER_MODULES}.ray_serve",
    "LitServe": f"-m {_PEER_MODULES}.lit",
    "Mosec": f"-m {_PEER_MODULES}.mosec_stages --address 127.0.0.1 --port {{port}} --timeout 60000 --log-level error",
    "FastAPI, fp32": f"-m {_PEER_MODULES}.plain",
}
ENVIRONMENT = {
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",  # docs.ray.io, Serve's performance tuning
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # which the former turns on, and which needs a proxy in front of it
}
VARIED = {  # what of `Settings` a peer has
    "BentoML": ("workers", "batch"),
    "Ray Serve": ("workers", "batch", "wait_ms"),
    "LitServe": ("workers", "batch", "wait_ms"),
    "Mosec": ("decoders", "workers", "batch", "wait_ms"),
    "FastAPI, fp32": ("workers",),
}
TUNED_PEERS = "peers.json"  # in the working folder: the settings that were found
TRITON_PATH = infer_path("classify")
TRITON_HEADERS = {HEADER_LENGTH: "0"}  # the body is the image alone, without a JSON header
READY = re.compile(r"^Ready: http://(\S+)  grpc://(\S+) ", re.MULTILINE)  # as `alexnet-triton serve` prints it
Result = TypeVar("Result")


@dataclass(frozen=True)
class Triton:
    """A running `alexnet-triton serve`, its addresses, HOST:PORT, and what it prints."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    log: Path = Path(os.devnull)

    @property
    def url(self) -> str:
        """Where JPEGs are posted to."""
        return f"http://{self.http}{TRITON_PATH}"

    @property
    def events(self) -> list[str]:
        """What its watcher has told: no right answer, a model that was replaced, a restart."""
        lines = self.log.read_text().splitlines()
        return [line for line in lines if not line.startswith(("Starting ", "Ready: "))]

    @property
    def processes(self) -> list[psutil.Process]:
        """`serve` first, then all that it has started: the supervisor, tritonserver, its stubs."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    @property
    def control(self) -> Control:
        """A client for single requests."""
        host, _, port = self.http.rpartition(":")
        return Control(host, int(port))


@contextmanager
def triton(
    repository: Path,
    folder: Path,
    variant: str = "cpu",
    limit_s: float = TRITON_START_TIMEOUT_S,
    cores: Collection[int] = (),
) -> Iterator[Triton]:
    """Run this project's server with its watcher on free ports; its logs are written to `folder`.

    `cores` are the processors that it may use, by number; without them it has those of this process.

    Raises:
        BenchError: it does not start in `limit_s`.
    """
    command = [sys.executable, "-m", "alexnet_triton", "serve", "--repository", str(repository), "--variant", variant]
    command += ["--log", str(folder / "tritonserver.log")]
    command += [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
    if cores:
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    log = folder / "serving.log"
    with run_program(command, log, lambda: READY.findall(log.read_text()), limit_s=limit_s) as (process, addresses):
        http, grpc = addresses[0]
        yield Triton(process, http, grpc, log)


def read_peer_settings(config: BenchConfig) -> dict[str, Settings]:
    """The settings that each peer runs with: those that were found on this machine, else the defaults.

    Raises:
        BenchError: the file of those that were found is damaged.
    """
    file = config.folder / TUNED_PEERS
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
        return {name: Settings(**found.get(name, {})) for name in PEERS}
    except (ValueError, TypeError, AttributeError) as error:
        raise BenchError(f"{file}: damaged ({error}); remove it, or run `bench tune --peer` again") from error


@contextmanager
def peer(name: str, config: BenchConfig, settings: Settings | None = None) -> Iterator[str]:
    """Run another server; yields its URL. Without settings it has those of `read_peer_settings`.

    Raises:
        BenchError: the peers' environment is missing, or the server does not answer.
    """
    python = config.peers_python.absolute()  # not resolved: the link is what makes it the environment's Python
    if not python.is_file():
        raise BenchError(f"no {config.peers_python}: run `make bench`, or name the peers' Python with --peers-python")
    port, log = free_port(), config.folder / f"{name.split(',')[0].lower().replace(' ', '-')}.log"
    command = [str(python), *PEERS[name].format(port=port).split()]
    url, body = f"http://127.0.0.1:{port}/classify", (config.bodies / "000.jpg").read_bytes()
    chosen = json.dumps(asdict(settings or read_peer_settings(config)[name]))
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "alexnet_triton").symlink_to(ROOT)  # stands for the package, which is not installed there
        folders = dict.fromkeys(("PYTHONPATH", "BENTOML_HOME", "RAY_TMPDIR"), scratch)
        network = {"BENCH_NETWORK": str(config.network), "BENCH_SIZE": str(config.network_config.input[0].dims[0])}
        variables = {**os.environ, **ENVIRONMENT, **folders, **network, SETTINGS: chosen, "PORT": str(port)}
        with run_program(command, log, lambda: _classifies(url, body), own_group=True, cwd=scratch, env=variables):
            yield url


def _classifies(url: str, body: bytes) -> bool:
    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"})
    with suppress(OSError), urllib.request.urlopen(request, timeout=10) as response:
        return b"probability" in response.read()
    return False


@contextmanager
def run_program(
    command: Sequence[str],
    log: Path,
    ready: Callable[[], Result],
    own_group: bool = False,
    limit_s: float = START_TIMEOUT_S,
    **options: Any,
) -> Iterator[tuple[subprocess.Popen[bytes], Result]]:
    """Run a program until the end of the block; yields it and what `ready` returned, once that is true.

    Args:
        log: the file of its output.
        own_group: what the program started and left behind is killed after it.
        limit_s: for its start.
        options: further ones of `subprocess.Popen`.

    Raises:
        BenchError: it ends, or is not ready in time.
    """
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=own_group, **options)
    with process:
        try:
            yield process, _wait_until(ready, process, log, limit_s)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            if own_group:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()


def _wait_until(ready: Callable[[], Result], process: subprocess.Popen[bytes], log: Path, limit_s: float) -> Result:
    deadline = time.monotonic() + limit_s
    while not (result := ready()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"the server does not start: see {log}")
        time.sleep(POLL_S)
    return result
