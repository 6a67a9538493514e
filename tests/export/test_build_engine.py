"""Plans of both networks in every precision, built with TensorRT-RTX on any machine and read back from their files.

TensorRT's runtime loads no plan without a GPU. The plan's own text says as much as is asked here: its
tensors, the operands of its convolutions and matrix products, and the batches that it takes.
"""

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet_triton.export import build_engine, onnx_file, quantize, tensorrt, to_onnx
from alexnet_triton.export.tensorrt import PlanConfig
from alexnet_triton.training.model import INPUT_SIZE
from small_graphs import small_graph
from tests.export.small_checkpoint import CLASSES, random_checkpoint

PRECISIONS = ("fp32", "fp16", "int8")
OPT, MAX = 8, 31
OPERANDS = {"fp32": "float", "fp16": "half", "int8": "int8"}


@dataclass(frozen=True)
class Plan:
    network: str
    precision: str
    path: Path
    sidecar: dict[str, Any]
    data: bytes

    @property
    def size(self) -> int:
        return INPUT_SIZE[self.network]

    def tensors(self) -> dict[str, tuple[str, str]]:
        """Name to dimensions and dtype, as the plan describes its tensors."""
        found = re.findall(rb'tensor=\{ [^\n]*?dims=\{ ([^}]*) \}[^\n]*? name="([^"]*)"[^\n]*? type=(\w+)', self.data)
        return {name.decode(): (dims.decode(), kind.decode()) for dims, name, kind in found}


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """(network, precision) -> ONNX file, with random weights at a sixteenth of the width."""
    folder = tmp_path_factory.mktemp("graphs")
    paths = {(n, p): folder / f"{n}.{p}.onnx" for n in INPUT_SIZE for p in PRECISIONS}
    for network, size in INPUT_SIZE.items():
        source = random_checkpoint(network)
        model = to_onnx.export(source, "0" * 64)
        onnx_file.write(model, paths[network, "fp32"])
        onnx_file.write(quantize.to_half(model), paths[network, "fp16"])
        pixels = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
        quantize.quantize(paths[network, "fp32"], paths[network, "int8"], pixels)
    return paths


@pytest.fixture(scope="session", params=[(n, p) for n in INPUT_SIZE for p in PRECISIONS], ids="-".join)
def plan(
    request: pytest.FixtureRequest,
    graphs: dict[tuple[str, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Plan:
    path = tmp_path_factory.mktemp("plan") / "model.plan"
    sidecar = build_engine.build_engine(graphs[request.param], path, PlanConfig(OPT, MAX), check=True)
    return Plan(*request.param, path, sidecar, path.read_bytes())


def test_tensors(plan: Plan) -> None:
    pixels, classes = [plan.size, plan.size, 3], len(CLASSES)
    assert plan.sidecar["inputs"] == [{"name": "images", "dtype": "UINT8", "shape": [-1, *pixels]}]
    assert plan.sidecar["outputs"] == [{"name": "probabilities", "dtype": "FLOAT", "shape": [-1, classes]}]
    tensors = plan.tensors()
    (images, images_dtype), (probabilities, probabilities_dtype) = tensors["images.1"], tensors["probabilities.1"]
    assert (images_dtype, probabilities_dtype) == ("uint8", "float")
    assert images.split()[1:] == [str(n) for n in pixels]
    assert probabilities.split()[1:] == [str(classes)]


def test_profile(plan: Plan) -> None:
    shapes = {key: [batch, plan.size, plan.size, 3] for key, batch in (("min", 1), ("opt", OPT), ("max", MAX))}
    assert plan.sidecar["profile"] == shapes
    places = [plan.data.find(struct.pack("<4q", *shape)) for shape in shapes.values()]
    assert -1 not in places
    assert places == sorted(places)
    assert f"out of bounds [1, {MAX}]".encode() in plan.data


def test_every_convolution_and_product_has_its_precision(plan: Plan) -> None:
    tensors = plan.tensors()
    layers = re.findall(
        rb'(?:corrltn|fully_connected)=\{ name="node_(Conv|Gemm)[^"]*" [^\n]*?input=\{"([^"]*)" "([^"]*)"', plan.data
    )
    operands = {(kind, tensors[x.decode()][1], tensors[w.decode()][1]) for kind, x, w in layers}
    expected = OPERANDS[plan.precision]
    assert operands == {(b"Conv", expected, expected), (b"Gemm", expected, expected)}


def test_sidecar_says_what_the_plan_is(plan: Plan) -> None:
    sidecar = json.loads(plan.path.with_name("model.plan.json").read_text())
    assert sidecar == plan.sidecar
    assert sidecar["purpose"] == "a check, built by TensorRT-RTX: not for Triton"
    assert sidecar["builder"] == {"name": "TensorRT-RTX", "version": tensorrt.load(rtx=True).__version__}
    assert sidecar["plan"] == {"bytes": len(plan.data), "sha256": hashlib.sha256(plan.data).hexdigest()}
    assert sidecar["config"]["max_batch"] == MAX
    assert sidecar["verified"].startswith("not run: ")


def test_timing_cache_is_written_and_given_to_the_next_build(tmp_path: Path) -> None:
    model, output = small_graph(tmp_path / "small.onnx"), tmp_path / "small.plan"
    gpus_own, checks = tmp_path / "small.plan.timing_cache", tmp_path / "small.plan.check_timing_cache"
    gpus_own.write_bytes(b"of a build for Triton")
    assert build_engine.build_engine(model, output, PlanConfig(), check=True)["timing_cache"] == "new"
    assert checks.stat().st_size > 0
    again = build_engine.build_engine(model, output, PlanConfig(), check=True)["timing_cache"]
    # TensorRT-RTX reads the cache, but can use it only on a GPU, and then says so.
    assert again == "reused" or again.startswith("started anew: Failed to deserialize timing cache")
    checks.write_bytes(b"damaged" * 100)
    third = build_engine.build_engine(model, output, PlanConfig(), check=True)["timing_cache"]
    assert third.startswith("started anew: ")
    assert gpus_own.read_bytes() == b"of a build for Triton"


def test_a_graph_of_a_fixed_batch_keeps_it(tmp_path: Path) -> None:
    model = small_graph(tmp_path / "small.onnx", batch=1)
    profile = build_engine.build_engine(model, tmp_path / "small.plan", PlanConfig(), check=True)["profile"]
    assert profile == {"min": [1, 4, 4, 3], "opt": [1, 4, 4, 3], "max": [1, 4, 4, 3]}


def test_command_says_that_a_check_is_not_for_triton(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = small_graph(tmp_path / "small.onnx"), tmp_path / "small.plan"
    flags = ["--builder-level", "1", "--workspace", "64", "--max", "4", "--version-compatible"]
    assert build_engine.main([str(model), str(output), "--check", *flags]) == 0
    printed = capsys.readouterr().out
    assert "not for Triton" in printed
    assert "batch min/opt/max 1/4/4" in printed
    assert "--backend-config=tensorrt,version-compatible=true" in printed
    assert sorted(path.name for path in tmp_path.glob("small.plan*")) == [
        "small.plan",
        "small.plan.check_timing_cache",
        "small.plan.json",
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_plan_for_triton_answers_as_onnx_runtime(
    precision: str, graphs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    output = tmp_path / "model.plan"
    first = build_engine.build_engine(graphs["alexnet", precision], output, PlanConfig(OPT, MAX))
    assert first["purpose"] == "for Triton"
    assert max(first["verified"]["largest_difference"].values()) <= build_engine.TOLERANCE
    assert json.loads((tmp_path / "model.plan.layers.json").read_text())["Layers"]
    again = build_engine.build_engine(graphs["alexnet", precision], output, PlanConfig(OPT, MAX))
    assert again["timing_cache"] == "reused"
