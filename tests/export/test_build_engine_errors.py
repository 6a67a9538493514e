"""What build-engine says of models, options and machines that it cannot use."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from alexnet_triton.export import build_engine
from alexnet_triton.serving.plan_engine import has_gpu
from small_graphs import small_graph
from tests.simulated_driver import OLD_DRIVER, simulate_driver

without_gpu = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
CAST = helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT)
BAD = {
    "truncated": (lambda path: path.write_bytes(small_graph(path).read_bytes()[:90]), "damaged"),
    "text": (lambda path: path.write_text("not a model"), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "absent": (lambda path: None, "no such model"),
    "two inputs": (lambda path: small_graph(path, inputs=("mask",)), "2 inputs (images, mask)"),
    "no such operator": (
        lambda path: small_graph(path, [helper.make_node("Foo", ["images"], ["probabilities"])]),
        "Foo",
    ),
    "operator of another domain": (
        lambda path: small_graph(
            path, [CAST, helper.make_node("Bar", ["pixels"], ["probabilities"], domain="elsewhere")]
        ),
        "does not take Bar",
    ),
    "transposed uint8": (
        lambda path: small_graph(
            path,
            [
                helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
                helper.make_node("Cast", ["planes"], ["pixels"], to=TensorProto.FLOAT),
                helper.make_node("ReduceMean", ["pixels"], ["probabilities"], keepdims=0),
            ],
        ),
        "does not take Transpose",
    ),
    "other signature": (
        lambda path: path.write_bytes(small_graph(path).read_bytes().replace(b"images", b"bitmap")),
        "alexnet-triton publish --onnx",
    ),
}


@pytest.mark.parametrize(("write", "says"), BAD.values(), ids=BAD.keys())
def test_bad_model_is_one_line(write: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "bad.onnx"
    write(model)
    assert build_engine.main([str(model), str(tmp_path / "out" / "bad.plan"), "--check"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"alexnet-triton build-engine: {model}: ")
    assert says in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [["--opt", "9", "--max", "8"], ["--max", "0"], ["--workspace", "0"]])
def test_impossible_options_are_one_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        build_engine.main(["model.onnx", "model.plan", "--check", *flags])
    (line,) = capsys.readouterr().err.splitlines()
    assert refused.value.code == 2
    assert line.startswith("alexnet-triton build-engine: ")
    assert flags[0] in line


@without_gpu
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_engine.main([str(small_graph(tmp_path / "small.onnx")), str(tmp_path / "small.plan")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("alexnet-triton build-engine: no GPU: ")
    assert "--check" in line


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process grows beyond 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_what_was_there(tmp_path: Path, full_disk: None, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = small_graph(tmp_path / "small.onnx"), tmp_path / "small.plan"
    output.write_bytes(b"the plan before")
    assert build_engine.main([str(model), str(output), "--check"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"alexnet-triton build-engine: {output}: cannot be written (file too large); ")
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()}.keys() == {"small.onnx", "small.plan"}
    assert output.read_bytes() == b"the plan before"


def test_an_old_driver_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate_driver(tmp_path / "bin", monkeypatch, OLD_DRIVER)
    model = small_graph(tmp_path / "small.onnx")
    assert build_engine.main([str(model), str(tmp_path / "small.plan")]) == 1
    line = "NVIDIA driver 535.104.05 is too old for CUDA 13: install R580 or newer, or try the graph here with --check"
    assert capsys.readouterr().err == f"alexnet-triton build-engine: {line}\n"
    assert not list(tmp_path.glob("small.plan*"))
