"""What the TensorRT runner says on a machine that has no GPU, or no TensorRT."""

import importlib.util
from pathlib import Path

import pytest

from alexnet_triton.export import tensorrt
from alexnet_triton.export.errors import ExportError
from alexnet_triton.export.tensorrt import Device, find_gpu, plan_runner

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="this machine has a GPU")
without_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")


def test_absent_plan(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"absent\.plan: No such file or directory; build it"):
        plan_runner(tmp_path / "absent.plan")


@without_tensorrt
def test_tensorrt_that_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"a plan")
    with pytest.raises(ExportError, match=r"tensorrt is not installed: pip install -e '\.\[gpu\]'"):
        plan_runner(tmp_path / "model.plan")


@without_gpu
def test_device_without_a_gpu() -> None:
    with pytest.raises(ExportError, match=r"no GPU here|nvidia-smi"):
        Device()


def test_a_file_that_is_no_plan() -> None:
    with pytest.raises(ExportError, match=r"cannot load the plan: .*; build it anew"):
        tensorrt.deserialize(tensorrt.load(rtx=True), b"no plan" * 100, host_code=False)


@pytest.mark.skipif(find_gpu() is None, reason="not run: no GPU")
def test_the_gpu_is_described() -> None:
    gpu = find_gpu()
    assert gpu is not None
    assert gpu.name
    assert gpu.memory_mib > 0
