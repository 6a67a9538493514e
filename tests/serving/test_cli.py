"""python -m serving, as a person runs it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _serve(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "alexnet_triton", "serve", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "HTTP_PORT": "0", "GRPC_PORT": "0", "METRICS_PORT": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_runs_until_it_is_told_to_stop(tiny_repository: Path, tmp_path: Path, name: signal.Signals) -> None:
    with _serve("--repository", tiny_repository, "--log", tmp_path / "log") as serving:
        assert serving.stdout
        assert serving.stderr
        assert "Starting" in serving.stdout.readline()
        assert "Ready: http://127.0.0.1:" in serving.stdout.readline()
        serving.send_signal(name)
        assert serving.wait(30) == 0
        assert serving.stderr.read() == ""


def test_stops_while_starting(tiny_repository: Path, tmp_path: Path) -> None:
    with _serve("--repository", tiny_repository, "--log", tmp_path / "log") as serving:
        assert serving.stdout
        assert serving.stderr
        serving.stdout.readline()
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0
        assert serving.stderr.read() == ""


def test_a_missing_repository_is_one_line(tmp_path: Path) -> None:
    _refused(_serve("--repository", tmp_path / "nowhere", "--log", tmp_path / "log"), "nowhere: build the repository")


def test_a_taken_port_is_one_line(tiny_repository: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serving = _serve("--repository", tiny_repository, "--log", tmp_path / "log", HTTP_PORT=str(port))
        _refused(serving, f"port {port} on 127.0.0.1 is taken: stop what listens there, or set HTTP_PORT")


def test_no_tritonserver_is_one_line(tiny_repository: Path, tmp_path: Path) -> None:
    serving = _serve("--repository", tiny_repository, "--log", tmp_path / "log", TRITONSERVER="/nowhere/tritonserver")
    _refused(serving, "/nowhere/tritonserver is not a program")


def _refused(serving: subprocess.Popen[str], message: str) -> None:
    _, errors = serving.communicate(timeout=30)
    assert serving.returncode == 1
    assert message in errors
    assert len(errors.splitlines()) == 1
