"""How many processes the gateway's nginx has: by what the container may use, not by what the host has."""

import os
import time
from pathlib import Path

import psutil
import pytest

from tests.docker.gateway import START, Gateway, run
from tests.docker.test_images import compose

HOST = 128  # processors
QUOTAS = [
    ({}, HOST),
    ({"cpu.max": "max 100000"}, HOST),
    ({"cpu.max": "200000 100000"}, 2),
    ({"cpu.max": "150000 100000"}, 2),
    ({"cpu.max": "50000 100000"}, 1),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, HOST),
    ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 128 processors, as `nproc` says; returns the folder of the container's control group."""
    program, groups = tmp_path / "bin/nproc", tmp_path / "cgroup"
    for folder in (program.parent, groups / "cpu"):
        folder.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho {HOST}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return groups


def new_gateway(secrets: Path, folder: Path, groups: Path, workers: str) -> Gateway:
    """No Triton is behind it: none is asked."""
    triton = ["127.0.0.1:9"]
    return Gateway(secrets, folder / "access.jsonl", triton, triton, workers=workers, cgroup=groups)


@pytest.mark.parametrize(("files", "workers"), QUOTAS, ids=[" ".join(files.values()) or "none" for files, _ in QUOTAS])
def test_auto_is_what_the_control_group_allows(
    files: dict[str, str], workers: int, host: Path, secrets: Path, tmp_path: Path
) -> None:
    for name, text in files.items():
        (host / name).write_text(f"{text}\n")
    nginx = tmp_path / "nginx"
    nginx.write_text(f'#!/bin/sh\necho "--add-module=njs" >&2\n[ -z "$6" ] || cp "$6" {tmp_path}\n')
    nginx.chmod(0o755)
    gateway = new_gateway(secrets, tmp_path, host, "auto")
    assert run(START, "check", **{**gateway.environment, "GATEWAY_NGINX": str(nginx)}).returncode == 0
    assert f"worker_processes {workers};" in (tmp_path / "nginx.conf").read_text().splitlines()


@pytest.mark.parametrize("asked", ["auto", "compose.yaml"])
def test_on_128_processors_it_has_the_workers_of_its_two(asked: str, host: Path, secrets: Path, tmp_path: Path) -> None:
    (host / "cpu.max").write_text("200000 100000\n")
    workers = asked if asked == "auto" else compose("gpu")["services"]["gateway"]["environment"]["GATEWAY_WORKERS"]
    gateway = new_gateway(secrets, tmp_path, host, workers)
    with gateway:
        assert gateway.process
        deadline = time.monotonic() + 10
        while len(names := worker_names(gateway.process.pid)) < 2:
            assert time.monotonic() < deadline, gateway.errors.read_text()
        assert names == 2 * ["nginx: worker process"]


def worker_names(pid: int) -> list[str]:
    processes = psutil.Process(pid).children(recursive=True)
    return [title for process in processes if (title := process.cmdline()[0]).startswith("nginx: worker")]
