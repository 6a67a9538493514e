"""`alexnet-triton export` of a classifier that this project did not train, with and without labelled images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from alexnet_triton.export import pipeline
from alexnet_triton.export.quantize import quantize
from alexnet_triton.serving.engine import precision_hint, read_network

COLOURS = ("red", "green", "blue")
SIZE = 16
IMAGES = 96


def classifier(path: Path, *, inputs: int = 1, layout: str = "NCHW", scores: int = 3) -> Path:
    """The brightest channel, by a depthwise and a 1x1 convolution: float [N, 3, S, S], or uint8 [N, S, S, 3]."""
    weights = {"depthwise": np.ones((3, 1, 1, 1)), "mixing": 3 * np.eye(scores, 3).reshape(scores, 3, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["pixels", "depthwise"], ["same"], group=3),
        helper.make_node("Relu", ["same"], ["positive"]),
        helper.make_node("Conv", ["positive", "mixing"], ["mixed"]),
        helper.make_node("GlobalAveragePool", ["mixed"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["scores"]),
    ]
    shape, kind = ["N", 3, SIZE, SIZE], TensorProto.FLOAT
    if layout == "NHWC":
        shape, kind = ["N", SIZE, SIZE, 3], TensorProto.UINT8
        nodes[:0] = [
            helper.make_node("Transpose", ["input"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "full"], ["pixels"]),
        ]
        weights["full"] = np.array(255)
    else:
        nodes[0].input[0] = "input"
    values = [helper.make_tensor_value_info(f"input{n or ''}", kind, shape) for n in range(inputs)]
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", scores])
    tensors = [numpy_helper.from_array(each.astype(np.float32), name) for name, each in weights.items()]
    graph = helper.make_graph(nodes, "colours", values, [output], tensors)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, its labels, and pictures of one colour each: in <class>/ folders, and together without labels."""
    folder = tmp_path_factory.mktemp("colours")
    classifier(folder / "colours.onnx")
    (folder / "labels.txt").write_text("\n".join(COLOURS))
    (folder / "loose").mkdir()
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        channel = number % 3
        pixels = random.integers(0, 120, (20, 20, 3), np.uint8)
        pixels[..., channel] += 130
        picture = Image.fromarray(pixels)
        (folder / "classes" / COLOURS[channel]).mkdir(parents=True, exist_ok=True)
        picture.save(folder / "classes" / COLOURS[channel] / f"{number}.png")
        picture.save(folder / "loose" / f"{number}.png")
    return folder


def export(folder: Path, output: Path, test: str, *more: str, model: str = "colours.onnx") -> int:
    words = [str(folder / model), "--test", str(folder / test), "--rounds", "1", "--name", "colours", *more]
    if "--labels" not in more:
        words += ["--labels", str(folder / "labels.txt")]
    if "--preset" not in more and "--mean" not in more:
        words += ["--preset", "torchvision"]
    return pipeline.main([*words, "--onnx", str(output / "onnx"), "--repository", str(output / "built")])


def read_manifest(output: Path) -> dict[str, Any]:
    return json.loads((output / "built" / "classify" / "1" / "manifest.json").read_text())


def test_every_precision_is_compared_on_images_that_calibration_has_not_seen(folder: Path, tmp_path: Path) -> None:
    assert export(folder, tmp_path, "classes") == 0
    report = json.loads((tmp_path / "onnx" / "report.json").read_text())
    assert {row["precision"] for row in report["rows"]} == {"fp32", "fp16", "bf16", "int8"}
    assert {row["top1"] for row in report["rows"]} == {1.0}
    assert {row["images"] for row in report["rows"]} == {report["test_set"]} == {IMAGES // 2}
    manifest = read_manifest(tmp_path)
    assert manifest["compared"] == "top-1 and top-5"
    assert set(manifest["precisions"]) == {"fp32", "fp16", "bf16", "int8"}
    assert (tmp_path / "built" / "classify" / "labels.1.txt").read_text().split() == [*COLOURS]


def test_without_labels_precisions_have_to_agree(folder: Path, tmp_path: Path) -> None:
    assert export(folder, tmp_path, "loose") == 0
    manifest = read_manifest(tmp_path)
    assert manifest["compared"] == "agreement, no labels"
    assert set(manifest["precisions"]["int8"]) == {"agreement", "distance"}
    assert manifest["precisions"]["int8"]["agreement"] > 0.9


def test_calibration_images_of_ones_own(folder: Path, tmp_path: Path) -> None:
    more = tmp_path / "calibration"
    more.mkdir()
    for number in range(128):
        Image.new("RGB", (20, 20), (number, 2 * number, 255 - number)).save(more / f"{number}.png")
    assert export(folder, tmp_path, "classes", "--calibration", str(more)) == 0
    report = json.loads((tmp_path / "onnx" / "report.json").read_text())
    assert report["rows"][0]["images"] == IMAGES


def test_labels_in_another_order_are_noticed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "labels.txt"
    other.write_text("blue\nred\ngreen\n")
    assert export(folder, tmp_path, "classes", "--labels", str(other)) == 1
    assert "top-1 0.0000 on 48 images of 3 classes is no better than guessing; check" in capsys.readouterr().err
    assert not (tmp_path / "built").exists()


def test_a_precision_that_answers_otherwise_is_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """INT8 with its mixing weights turned answers as confidently, with other classes."""

    def turned(fp32: Path, output: Path, *rest: Any) -> None:
        quantize(fp32, output, *rest)
        model = onnx.load(output)
        (weights,) = [
            each for each in model.graph.initializer if each.name.startswith("mixing") and each.dims[:2] == [3, 3]
        ]
        values = numpy_helper.to_array(weights)
        weights.CopyFrom(numpy_helper.from_array(np.roll(values, 1, axis=0), weights.name))
        onnx.save(model, output)

    monkeypatch.setattr(pipeline, "quantize", turned)
    assert export(folder, tmp_path, "loose") == 0
    assert "left out: int8, which gives the answer of fp32 for 0.000 of the images" in capsys.readouterr().err
    assert set(read_manifest(tmp_path)["precisions"]) == {"fp32", "fp16", "bf16"}


def test_what_cannot_be_quantized_is_left_out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexnet_triton.export import quantize as module

    monkeypatch.setitem(module.OPTIONS, "op_types_to_quantize", 7)
    assert export(folder, tmp_path, "classes") == 0
    report = json.loads((tmp_path / "onnx" / "report.json").read_text())
    assert "cannot be quantized" in report["left_out"]["int8"]
    assert set(read_manifest(tmp_path)["precisions"]) == {"fp32", "fp16", "bf16"}


def test_depthwise_convolutions_stay_float32(folder: Path, tmp_path: Path) -> None:
    assert export(folder, tmp_path, "classes") == 0
    model = onnx.load(tmp_path / "onnx" / "model.int8.onnx")
    restored = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    depthwise, mixing = [node for node in model.graph.node if node.op_type == "Conv"]
    assert not restored.intersection(depthwise.input)
    assert len(restored.intersection(mixing.input)) == 2
    path = tmp_path / "onnx" / "model.int8.onnx"
    assert precision_hint(read_network(path, "int8"), "int8") == "f32"  # BF16 would round them


def test_uint8_images_are_taken_as_they_are(folder: Path, tmp_path: Path) -> None:
    classifier(tmp_path / "pixels.onnx", layout="NHWC")
    words = ("--preset", "none")
    assert export(folder, tmp_path, "classes", *words, model=str(tmp_path / "pixels.onnx")) == 0


@pytest.mark.parametrize(
    ("words", "inputs", "code", "reason"),
    [
        (("--labels", "two.txt"), 1, 1, "gives 3 scores for 2 labels; give one label a score"),
        (("--preset", "tf", "--mean", "1"), 1, 1, "--preset tf has a mean and deviation: leave out --mean and --std"),
        ((), 2, 1, "2 inputs (input, input1) where one image is expected"),
        (("--test", "empty"), 1, 1, "empty: no images, neither in <class>/ folders nor in it"),
        (("--test", "few"), 1, 1, "few: 4 images, but 16 are needed; add some"),
        (("--test", "absent"), 1, 1, "absent: no such folder"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    inputs: int,
    code: int,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.txt").write_text("a\nb\n")
    Path("empty").mkdir()
    Path("few").mkdir()
    for number in range(8):
        Image.new("RGB", (20, 20)).save(f"few/{number}.png")
    classifier(Path("model.onnx"), inputs=inputs)
    assert export(folder, tmp_path, "classes", *words, model=str(tmp_path / "model.onnx")) == code
    errors = capsys.readouterr().err
    assert reason in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not (tmp_path / "built").exists()


def test_an_onnx_model_needs_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        pipeline.main([str(folder / "colours.onnx"), "--test", str(folder / "classes")])
    assert end.value.code == 2
    assert "an ONNX model needs --labels" in capsys.readouterr().err
