"""`alexnet-triton export`: every precision written, compared and published."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from alexnet_triton.export import numerics, pipeline, publish
from alexnet_triton.export.numerics import find_images, onnx_runtime, openvino
from alexnet_triton.serving.engine import openvino_core, precision_hint, read_network
from alexnet_triton.training.checkpoint import Checkpoint
from main_job import MainJob
from tests.serving.tiny import running_server


@pytest.fixture(scope="module")
def calibration(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 of the test pictures, which serve as training images here; 128 of them calibrate."""
    folder = tmp_path_factory.mktemp("calibration")
    for pictures in (main_job.artifacts / "pictures").iterdir():
        (folder / pictures.name).mkdir()
        for picture in sorted(pictures.iterdir())[:20]:
            (folder / pictures.name / picture.name).symlink_to(picture)
    return folder


@pytest.fixture(scope="module")
def exported(main_job: MainJob, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of models and report. Forced: of 64 images, one more or less is 1.6 points, past every gate."""
    folder = tmp_path_factory.mktemp("exported")
    options: dict[str, object] = {
        "--test": main_job.artifacts / "pictures",
        "--calibration": calibration,
        "--onnx": folder,
        "--json": folder / "copy.json",
        "--repository": folder / "model_repository",
        "--limit": 64,
        "--rounds": 1,
    }
    words = [str(main_job.artifacts / "checkpoint.pt"), "--force"]
    words += [str(each) for option in options.items() for each in option]
    # In this process, where PyTorch is loaded; tests/export/test_command.py has the command in one of its own.
    with redirect_stdout(io.StringIO()) as printed:
        assert pipeline.main(words) == 0
    assert "not run: no GPU" in printed.getvalue()
    return folder


@pytest.fixture(scope="module")
def rows(exported: Path) -> dict[tuple[str, str], dict[str, Any]]:
    report = json.loads((exported / "report.json").read_text())
    assert report == json.loads((exported / "copy.json").read_text())
    assert report["command"].startswith("alexnet-triton export ")
    return {(row["precision"], row["runtime"]): row for row in report["rows"]}


def test_every_precision_is_compared(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert set(rows) == {
        *(("fp32", "ONNX Runtime"), ("fp16", "ONNX Runtime"), ("fp32", "OpenVINO")),
        *(("bf16", "OpenVINO"), ("int8", "OpenVINO")),
    }
    assert rows["fp32", "OpenVINO"]["largest_difference"] < 1e-4
    assert rows["fp16", "ONNX Runtime"]["megabytes"] < 0.55 * rows["fp32", "OpenVINO"]["megabytes"]
    assert rows["int8", "OpenVINO"]["megabytes"] < 0.3 * rows["fp32", "OpenVINO"]["megabytes"]
    assert all(row["images"] == 64 and row["agreement"] > 0.9 for row in rows.values())
    timed = {key for key, row in rows.items() if row["images_per_second"]}
    assert timed == {key for key in rows if key[1] == "OpenVINO"}


def element_types(model: onnx.ModelProto, operator: str) -> set[int]:
    """Types of the inputs and outputs of all nodes of an operator."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    types |= {weights.name: weights.data_type for weights in inferred.graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in inferred.graph.output}
    nodes = [node for node in inferred.graph.node if node.op_type == operator]
    assert nodes
    return {types[name] for node in nodes for name in (*node.input, *node.output)}


def test_fp16_is_written_in_the_graph(exported: Path) -> None:
    model = onnx.load(exported / "model.fp16.onnx")
    assert element_types(model, "Conv") == element_types(model, "Gemm") == {onnx.TensorProto.FLOAT16}
    assert element_types(model, "LRN") == element_types(model, "Softmax") == {onnx.TensorProto.FLOAT}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_int8_is_symmetric_and_per_channel(exported: Path, trained: Checkpoint) -> None:
    """TensorRT takes zero-points of 0 only."""
    model = onnx.load(exported / "model.int8.onnx")
    constants = {weights.name: onnx.numpy_helper.to_array(weights) for weights in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(not constants[node.input[2]].any() for node in quantizers if len(node.input) > 2)
    scales = [constants[node.input[1]].size for node in quantizers if node.input[0] in constants]
    units = [trained.network.units(published) for published in (96, 256, 256, 384, 384, 4096, 4096)]
    assert sorted(scales) == [10, *units]


def test_int8_runs_in_both_runtimes_alike(exported: Path, main_job: MainJob, trained: Checkpoint) -> None:
    """On 256 images: a network that has learned for seconds finds two classes equally probable for every tenth."""
    pixels = find_images(main_job.artifacts / "pictures", trained.classes, 256).pixels(227)
    path = exported / "model.int8.onnx"
    runs = (onnx_runtime(path), openvino(path, "int8"))  # as the server runs it: 7 bits a weight where sums saturate
    one, other = (numerics.run_in_batches(run, pixels, 32) for run in runs)
    assert np.abs(one - other).sum(axis=1).mean() / 2 < 0.05
    assert (one.argmax(axis=1) == other.argmax(axis=1)).mean() >= 0.95


def test_what_int8_leaves_in_floating_point_is_bf16_where_the_processor_has_it(exported: Path) -> None:
    """But for what comes after the last layer: probabilities are as fine as ever."""
    network = read_network(exported / "model.int8.onnx", "int8")
    settings = {"INFERENCE_PRECISION_HINT": precision_hint(network, "int8")}
    compiled = openvino_core().compile_model(network, "CPU", settings)
    layers = [layer.get_rt_info() for layer in compiled.get_runtime_model().get_ordered_ops()]
    kinds = {layer["layerType"].astype(str): layer["runtimePrecision"].astype(str) for layer in layers}
    expected = "bf16" if "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    assert (kinds["Lrn"], kinds["Pooling"], kinds["Softmax"]) == (expected, expected, "f32")


def test_what_is_published_is_served_in_int8(exported: Path) -> None:
    repository = exported / "model_repository"
    manifest = json.loads((repository / "alexnet" / "1" / "manifest.json").read_text())
    assert set(manifest["precisions"]) == {"fp32", "fp16", "bf16", "int8"}
    log = exported / "triton.log"
    with running_server(repository, log=log) as server:
        server.check()
    assert "model.int8.onnx in int8" in log.read_text()


def test_wrong_answers_are_refused_with_their_size() -> None:
    def right(images: np.ndarray) -> np.ndarray:
        return np.full((len(images), 2), 0.5, np.float32)

    def wrong_from_batch_7(images: np.ndarray) -> np.ndarray:
        return right(images) + (0.001 if len(images) >= 7 else 0)

    images = np.zeros((64, 1, 1, 3), np.uint8)
    assert numerics.check_batches(right, right, images) == dict.fromkeys((1, 2, 7, 32), 0.0)
    with pytest.raises(numerics.AccuracyError, match=r"differ by 1.00e-03"):
        numerics.check_batches(wrong_from_batch_7, right, images)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such model"), (b"these are words", "damaged or not valid ONNX"), (b"", "damaged or not valid ONNX")],
)
def test_bad_models_are_one_line(
    content: bytes | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    assert publish.main([str(path), "--images", str(tmp_path), "--repository", str(tmp_path / "built")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("alexnet-triton publish: ")
    assert error.count("\n") == 1
    assert reason in error
    assert not (tmp_path / "built").exists()


def test_nothing_to_roll_back_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish.rollback_main(["--repository", str(tmp_path)]) == 1
    assert "no version before" in capsys.readouterr().err
