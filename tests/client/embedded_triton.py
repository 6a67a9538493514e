"""The real tritonserver of the nvidia-pytriton wheel on a repository of the tests."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).parent / "repository"
ROOT = Path(__file__).resolve().parents[2]


def reserve() -> socket.socket:
    """A free port that no other process is given while this is open; whoever sets SO_REUSEPORT may listen on it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    return held


@contextmanager
def dead_port() -> Iterator[int]:
    """A port on which nobody listens."""
    with reserve() as held:
        yield held.getsockname()[1]


def backend_folder(folder: Path) -> Path:
    """Links to the wheel's Python backend and to its stub for this Python."""
    triton, python = wheel() / "tritonserver", folder / "python"
    python.mkdir(parents=True)
    stub = triton / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    for file in [*(triton / "backends/python").iterdir(), *stub.iterdir()]:
        (python / file.name).symlink_to(file)
    return folder


def wheel() -> Path:
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


class Triton:
    """One tritonserver on its own ports from `start` to the end of the block; `kill` and `start` may follow.

    It holds its ports while it is dead too, so that it comes back where it was.
    """

    def __init__(self, folder: Path, repository: Path = REPOSITORY, extra: tuple[str, ...] = ()) -> None:
        self._held = reserve(), reserve()
        self.http_port, self.grpc_port = (held.getsockname()[1] for held in self._held)
        self.log = folder / "triton.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._stub_count = 0
        self._repository, self._extra = repository, extra
        self._shm_prefix = f"client_tests_{os.getpid()}_{self.http_port}_"
        self._backends = backend_folder(folder / "backends")

    @property
    def urls(self) -> dict[str, str]:
        return {"grpc": f"grpc://127.0.0.1:{self.grpc_port}", "http": f"http://127.0.0.1:{self.http_port}"}

    def start(self) -> None:
        if self.process is not None and self.process.poll() is None:  # it lost a stub while it was frozen
            self.kill()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )
        self._wait()

    def kill(self) -> None:
        """As a machine that loses power: no goodbye on any connection but the kernel's."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._sweep()

    def freeze(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def alive(self) -> bool:
        """Whether the server and the stubs of its models are there."""
        return self.process is not None and self.process.poll() is None and len(self._stubs()) == self._stub_count

    def __enter__(self) -> "Triton":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for held in self._held:
            held.close()

    def _stubs(self) -> list[str]:
        assert self.process is not None
        found: list[str] = []
        for children in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                found += children.read_text().split()
        return found

    def _sweep(self) -> None:
        for region in Path("/dev/shm").glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)

    def _wait(self) -> None:
        assert self.process is not None
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/v2/health/ready", timeout=1):
                    self._stub_count = len(self._stubs())
                    return
            except (OSError, urllib.error.URLError):
                time.sleep(0.05)
        raise RuntimeError(f"tritonserver did not start: {self.log.read_text()[-2000:]}")

    def _command(self) -> list[str]:
        return [
            str(wheel() / "tritonserver/bin/tritonserver"),
            f"--model-repository={self._repository}",
            f"--backend-directory={self._backends}",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--allow-metrics=false",
            "--disable-auto-complete-config",  # else each model is started twice
            "--reuse-http-port=true",
            "--reuse-grpc-port=true",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            *self._extra,
        ]

    def _environment(self) -> dict[str, str]:
        libraries = [wheel().parent / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
        return os.environ | {
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}",  # where the stub finds its library
            "PYTHONDONTWRITEBYTECODE": "1",
        }
