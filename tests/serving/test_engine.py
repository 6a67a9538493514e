"""The network on a processor: what INT8 makes of the normalisation of pixels."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexnet_triton.export.numerics import onnx_runtime, openvino
from alexnet_triton.export.quantize import quantize
from alexnet_triton.serving import engine
from alexnet_triton.serving.engine import read_network

SIZE, CLASSES = 24, 5
MEAN, STD = np.float32([120, 110, 100]), np.float32([60, 55, 70])
COLOURS = np.random.default_rng(0).integers(0, 256, (32, 1, 1, 3))
PIXELS = np.clip(COLOURS + np.random.default_rng(1).integers(-40, 40, (32, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def write_network(path: Path, pads: int = 0, normalization: tuple[tuple[str, np.ndarray], ...] = ()) -> Path:
    """A convolution of normalised pixels, in INT8."""
    random = np.random.default_rng(1)
    weights = {
        "conv": random.normal(0, 0.2, (8, 3, 5, 5)),
        "bias": random.normal(0, 0.2, 8),
        "dense": random.normal(0, 1, (8, CLASSES)),
        "ends": random.normal(0, 0.2, CLASSES),
        **{f"constant{number}": value for number, (_, value) in enumerate(normalization)},
    }
    weights["conv"][0] = 0  # a channel that does nothing
    nodes = [helper.make_node("Cast", ["images"], ["x0"], to=TensorProto.FLOAT)]
    for number, (kind, _) in enumerate(normalization):
        nodes.append(helper.make_node(kind, [f"x{number}", f"constant{number}"], [f"x{number + 1}"]))
    nodes += [
        helper.make_node("Transpose", [f"x{len(normalization)}"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "conv", "bias"], ["y"], strides=[2, 2], pads=4 * [pads]),
        helper.make_node("Relu", ["y"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "ends"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES])
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "small", [images], [probabilities], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    quantize(path, path.with_name("int8.onnx"), PIXELS)
    return path.with_name("int8.onnx")


def nodes(path: Path, precision: str) -> list[str]:
    return [node.get_type_name() for node in read_network(path, precision).get_ordered_ops()]


@pytest.mark.parametrize(
    "normalization",
    [(("Sub", MEAN), ("Div", STD)), (("Div", STD), ("Sub", MEAN / STD)), (("Sub", MEAN[:1]), ("Div", STD[:1]))],
)
def test_normalization_of_pixels_is_in_the_first_convolution(
    tmp_path: Path, normalization: tuple[tuple[str, np.ndarray], ...]
) -> None:
    path = write_network(tmp_path / "model.onnx", normalization=normalization)
    assert "Divide" not in nodes(path, "int8")
    assert nodes(path, "int8").count("Subtract") < nodes(path, "fp32").count("Subtract")
    expected = onnx_runtime(tmp_path / "model.onnx")(PIXELS)
    folded, before = (np.abs(openvino(path, each)(PIXELS) - expected).mean() for each in ("int8", "fp32"))
    assert folded < 1.5 * before < 0.01  # rounding, in one way or the other
    assert np.abs(expected - expected[0]).max() > 0.05  # the images differ


@pytest.mark.parametrize(
    ("pads", "normalization"), [(1, (("Sub", MEAN), ("Div", STD))), (0, (("Sub", MEAN), ("Mul", 1 / STD)))]
)
def test_what_would_be_another_network_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pads: int, normalization: tuple[tuple[str, np.ndarray], ...]
) -> None:
    """Padding is the mean, which is no pixel's value for all colours; other arithmetic is not read."""
    monkeypatch.setattr(engine, "sums_saturate", lambda: False)
    path = write_network(tmp_path / "model.onnx", pads, normalization)
    assert nodes(path, "int8") == nodes(path, "fp32")


def test_weights_have_seven_bits_where_sums_saturate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So two products with 255 fit 16 bits; the answers stay those of the network."""
    path = write_network(tmp_path / "model.onnx", normalization=(("Sub", MEAN), ("Div", STD)))
    monkeypatch.setattr(engine, "sums_saturate", lambda: True)
    ops = read_network(path, "int8").get_ordered_ops()
    levels = [node.data for node in ops if node.get_type_name() == "Constant" and node.data.dtype == np.int8]
    weights = [each for each in levels if each.ndim > 1]
    assert [np.abs(each).max() for each in weights] == [64, 64]
    expected = onnx_runtime(path.with_name("model.onnx"))(PIXELS)
    assert np.abs(openvino(path, "int8")(PIXELS) - expected).mean() < 0.02


def test_openvino_is_loaded_without_its_converter_which_others_still_find() -> None:
    """The converter brings telemetry, with an HTTP client, into every process of a server."""
    code = """
import sys
from alexnet_triton.serving.engine import openvino_core
openvino_core()
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"openvino_telemetry", "urllib3"} and "http.client" not in sys.modules, loaded
from openvino.tools.ovc import convert_model
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
