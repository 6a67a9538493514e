"""What `serve` does about GPUs, as far as it goes without one: a simulated nvidia-smi says which there are."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.common.provenance import InstalledGpu, gpu_fault, installed_gpus
from alexnet_triton.serving import Server, cli
from alexnet_triton.serving.launch import Installation, build_environment
from alexnet_triton.serving.repository import Repository, instance_count
from alexnet_triton.serving.supervisor import Stub
from tests.simulated_driver import H100, OLD_DRIVER, OLD_GPU, simulate_driver

Gpus = Sequence[dict[str, str]]


@pytest.mark.parametrize(
    ("visible", "count"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("1,7,0", 1), ("GPU-8f2c", 1)]
)
def test_gpus_that_may_be_used(
    visible: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate_driver(tmp_path, monkeypatch, H100, {**H100, "name": "NVIDIA L4", "memory.total": "23034"})
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = installed_gpus()
    assert len(gpus) == count
    if visible == "1":
        assert gpus == [InstalledGpu("NVIDIA L4", "580.65.06", "9.0", 23034)]


@pytest.mark.parametrize("body", ["exit 9", "echo 'No devices were found'", "echo 'a, b'"])
def test_an_nvidia_smi_that_fails_lists_none(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate_driver(tmp_path, monkeypatch, H100)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{body}\n")
    assert installed_gpus() == []


@pytest.mark.parametrize(
    ("gpus", "line"),
    [
        ([], "no GPU: nvidia-smi is not there or lists none; install NVIDIA's driver, R580 or newer"),
        ([OLD_DRIVER], "NVIDIA driver 535.104.05 is too old for CUDA 13: install R580 or newer"),
        (
            [H100, OLD_GPU],
            "Tesla V100-SXM2-16GB has compute capability 7.0, and CUDA 13 needs 7.5: hide it with CUDA_VISIBLE_DEVICES",
        ),
    ],
    ids=["none", "old driver", "old GPU"],
)
def test_serve_refuses_a_gpu_that_cuda_13_does_not_run_on(
    gpus: Gpus,
    line: str,
    tiny_repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    simulate_driver(tmp_path / "bin", monkeypatch, *gpus)
    assert gpu_fault(installed_gpus()) == line
    words = ["--variant", "gpu", "--repository", str(tiny_repository), "--log", str(tmp_path / "log")]
    code = cli.serve([*words, "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"])
    assert (code, capsys.readouterr().err) == (
        1,
        f"alexnet-triton serve: {line}, or serve on the processor with --variant cpu\n",
    )


@pytest.mark.parametrize(
    ("groups", "gpus", "count"),
    [
        ("instance_group { kind: KIND_GPU count: 2 }", 1, 2),
        ("instance_group { kind: KIND_GPU count: 2 }", 4, 8),
        ("instance_group { kind: KIND_GPU count: 2 gpus: [ 0, 3 ] }", 8, 4),
        ("instance_group { kind: KIND_GPU } instance_group { kind: KIND_CPU count: 3 }", 2, 5),
        ("instance_group { kind: KIND_CPU count: 3 }", 8, 3),
        ("", 8, 1),
    ],
)
def test_a_group_on_gpus_has_its_count_on_each(groups: str, gpus: int, count: int) -> None:
    assert instance_count(text_format.Parse(groups, ModelConfig()), gpus) == count


@pytest.mark.parametrize(("alive", "missing"), [(8, []), (7, ["preprocess"])])
def test_the_watcher_misses_a_stub_of_any_gpu(
    alive: int, missing: list[str], tiny_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four GPUs and two stubs on each: those of a machine that is not at hand are made up."""
    server = Server(tiny_repository, variant="gpu")
    server.repository, server._gpus = Repository.open(tiny_repository, "gpu"), 4
    monkeypatch.setattr(server, "_loaded_versions", lambda model: 1)
    monkeypatch.setattr(server, "_live_stubs", lambda: {pid: Stub("preprocess", "memory") for pid in range(alive)})
    assert server.missing_stubs() == missing


def test_a_start_on_a_gpu_may_take_longer(tiny_repository: Path) -> None:
    server = Server(tiny_repository)
    assert server._start_timeout_s == 60
    server._gpus = 1
    assert server._start_timeout_s == 300


def test_a_start_that_takes_too_long_names_the_option(
    tiny_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--repository", str(tiny_repository), "--log", str(tmp_path / "log"), "--start-timeout", "0.01"]
    assert cli.serve([*words, "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]) == 1
    line = f"not ready after 0.01 s: see {tmp_path / 'log'}, or give it longer with --start-timeout"
    assert capsys.readouterr().err == f"alexnet-triton serve: {line}\n"


def test_stubs_find_packages_in_the_order_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image /opt/packages, which is pinned, comes before what the image has in its own site-packages."""
    monkeypatch.setenv("PYTHONPATH", "/opt/packages:/opt/tritonserver/backends/dali/wheel/dali")
    found = build_environment(Installation(Path("/opt/tritonserver/bin/tritonserver"), None), Path("/run/modules"))
    folders = found["PYTHONPATH"].split(":")
    assert folders[:3] == ["/run/modules", "/opt/packages", "/opt/tritonserver/backends/dali/wheel/dali"]
    assert folders[3].endswith("-packages")


def test_stubs_have_no_threads_for_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    triton = Installation(Path("/opt/tritonserver/bin/tritonserver"), None)
    assert build_environment(triton, Path("/run/modules"))["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "8")  # a model of the user's own may multiply some
    assert build_environment(triton, Path("/run/modules"))["OPENBLAS_NUM_THREADS"] == "8"
