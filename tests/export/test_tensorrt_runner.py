"""What the TensorRT runner says on a machine that has no GPU, or no TensorRT."""

import importlib.util
from pathlib import Path

import pytest

from alexnet_triton.export import tensorrt
from alexnet_triton.export.errors import ExportError
from alexnet_triton.export.tensorrt import plan_runner
from alexnet_triton.serving.errors import EngineError
from alexnet_triton.serving.plan_engine import Device, deserialize, has_gpu

without_gpu = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
without_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")


def test_absent_plan(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"absent\.plan: No such file or directory; build it"):
        plan_runner(tmp_path / "absent.plan")


@without_tensorrt
def test_tensorrt_that_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(b"a plan")
    with pytest.raises(ExportError, match=r"tensorrt is not installed: pip install 'alexnet-triton\[gpu\]'"):
        plan_runner(tmp_path / "model.plan")


@without_gpu
def test_device_without_a_gpu() -> None:
    with pytest.raises(EngineError, match=r"no GPU here|nvidia-smi|pip install 'alexnet-triton\[gpu\]'"):
        Device()


def test_a_file_that_is_no_plan() -> None:
    with pytest.raises(EngineError, match=r"cannot load the plan: .*; build it again"):
        deserialize(tensorrt.load(rtx=True), b"no plan" * 100)


@pytest.mark.gpu
def test_the_gpu_is_described() -> None:
    gpu = Device().describe()
    assert gpu.name
    assert gpu.memory_mib > 0
