"""`alexnet-triton serve`, `status` and `stop`, as a person runs them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alexnet_triton.serving.cli import _reporter

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "alexnet_triton")


def _serve(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "serve", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "HTTP_PORT": "0", "GRPC_PORT": "0", "METRICS_PORT": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    return subprocess.run([*COMMAND, name], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_runs_until_ctrl_c(tiny_repository: Path, tmp_path: Path) -> None:
    with _serve("--repository", tiny_repository, "--log", tmp_path / "log") as serving:
        _ready(serving)
        serving.send_signal(signal.SIGINT)
        assert serving.wait(30) == 0
        assert serving.stderr
        assert serving.stderr.read() == ""


def test_status_and_stop(tiny_repository: Path, tmp_path: Path) -> None:
    """`stop` sends SIGTERM. A TMPDIR of its own hides the other servers of this machine."""
    with _serve("--repository", tiny_repository, "--log", tmp_path / "log", TMPDIR=str(tmp_path)) as serving:
        _ready(serving)
        status = _run("status", TMPDIR=str(tmp_path))
        assert status.returncode == 0
        assert " healthy " in status.stdout
        assert str(tiny_repository) in status.stdout
        stop = _run("stop", TMPDIR=str(tmp_path))
        assert stop.returncode == 0, stop.stderr
        assert serving.wait(10) == 0
        assert serving.stderr
        assert serving.stderr.read() == ""
    again = _run("stop", TMPDIR=str(tmp_path))
    assert (again.returncode, again.stderr) == (1, "alexnet-triton stop: nothing runs\n")


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


def test_a_full_disk_stops_no_watcher(capsys: pytest.CaptureFixture[str]) -> None:
    _reporter(Path("/dev/full"))("restart", reason="tritonserver ended")
    assert capsys.readouterr().err == "alexnet-triton serve: restart: tritonserver ended\n"


def _as_link(folder: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    folder.symlink_to(target)


@pytest.mark.parametrize(
    "plant", [lambda folder, _: folder.mkdir(mode=0o755), lambda folder, _: folder.touch(mode=0o700), _as_link]
)
def test_a_run_folder_that_others_can_reach_is_refused(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    """In a shared temporary folder another user can make it first."""
    plant(tmp_path / f"alexnet-triton-{os.getuid()}", tmp_path / "elsewhere")
    status = _run("status", TMPDIR=str(tmp_path))
    assert status.returncode == 1
    assert "only you may enter (mode 0700): remove it, or set TMPDIR" in status.stderr
    assert len(status.stderr.splitlines()) == 1


def test_a_volume_of_kubernetes_is_a_temporary_folder(tmp_path: Path) -> None:
    """With `fsGroup` its folders hand their group down, and the run folder's mode is 2700."""
    tmp_path.chmod(0o2777)
    status = _run("status", TMPDIR=str(tmp_path))
    assert (status.returncode, status.stdout) == (1, "nothing runs: start a server with `make serve`\n")
    (folder,) = tmp_path.glob("alexnet-triton-*")
    assert folder.stat().st_mode & 0o7777 == 0o2700


def _ready(serving: subprocess.Popen[str]) -> None:
    assert serving.stdout
    assert "Starting" in serving.stdout.readline()
    assert "Ready: http://127.0.0.1:" in serving.stdout.readline()


def _refused(serving: subprocess.Popen[str], message: str) -> None:
    _, errors = serving.communicate(timeout=30)
    assert serving.returncode == 1
    assert message in errors
    assert len(errors.splitlines()) == 1
