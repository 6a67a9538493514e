"""The exported graph says what the checkpoint computes."""

import json
import resource
from pathlib import Path

import onnx
import pytest
import torch

from alexnet_triton.common.files import sha256
from alexnet_triton.export import to_onnx
from alexnet_triton.training.checkpoint import Checkpoint
from main_job import MainJob
from tests.export.small_checkpoint import random_checkpoint, write_checkpoint, write_pictures


@pytest.fixture(scope="module")
def model(main_job: MainJob) -> onnx.ModelProto:
    return onnx.load(main_job.artifacts / "onnx" / "model.onnx")


def test_the_main_job_checks_every_batch_size(main_job: MainJob) -> None:
    for batch in (1, 2, 7, 32):
        assert f"batch {batch}: " in main_job.output


def test_signature(model: onnx.ModelProto) -> None:
    (images,), (probabilities,) = model.graph.input, model.graph.output
    dims = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert (images.name, images.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert dims == ["batch", 227, 227, 3]
    assert (probabilities.name, probabilities.type.tensor_type.elem_type) == ("probabilities", onnx.TensorProto.FLOAT)


def test_one_node_a_normalisation_with_the_papers_sum(model: onnx.ModelProto) -> None:
    nodes = [node for node in model.graph.node if node.op_type == "LRN"]
    assert len(nodes) == 2
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in nodes[0].attribute}
    assert attributes["size"] == 5
    assert attributes["alpha"] == pytest.approx(5e-4)  # ONNX divides it by the size
    assert not {node.op_type for node in model.graph.node} & {"Pow", "AveragePool", "Pad"}


def test_cast_comes_before_transpose(model: onnx.ModelProto) -> None:
    order = [node.op_type for node in model.graph.node]
    assert order.index("Cast") < order.index("Transpose")


def test_metadata_names_the_source(model: onnx.ModelProto, main_job: MainJob, trained: Checkpoint) -> None:
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert tuple(json.loads(properties["classes"])) == trained.classes
    assert properties["checkpoint_sha256"] == sha256(main_job.artifacts / "checkpoint.pt")


def test_same_checkpoint_same_bytes(model: onnx.ModelProto, main_job: MainJob, trained: Checkpoint) -> None:
    again = to_onnx.export(trained, sha256(main_job.artifacts / "checkpoint.pt"))
    assert again.SerializeToString(deterministic=True) == (main_job.artifacts / "onnx" / "model.onnx").read_bytes()


def test_features_are_what_the_probabilities_come_from() -> None:
    classifier = to_onnx.Classifier.of(random_checkpoint())
    images = torch.randint(0, 256, (3, 227, 227, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features, probabilities = classifier.features(images), classifier(images)
        logits = classifier.network.classifier[-1](features)
    assert (features.dtype, features.shape) == (torch.float32, (3, 256))
    torch.testing.assert_close(logits.softmax(dim=1), probabilities)


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pt").write_text("no checkpoint")
    for source in ("absent.pt", "text.pt"):
        assert to_onnx.main([str(tmp_path / source), str(tmp_path / "out.onnx"), "--images", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("alexnet-triton to-onnx: ") for line in lines)
    assert not (tmp_path / "out.onnx").exists()


def test_the_number_of_images_is_that_of_those_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_pictures(tmp_path / "images", 34)
    words = [write_checkpoint(tmp_path / "checkpoint.pt"), tmp_path / "model.onnx", "--images", images]
    assert to_onnx.main(list(map(str, words))) == 0
    assert "largest probability difference from PyTorch, 34 images: batch 1: " in capsys.readouterr().out


def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, output = write_pictures(tmp_path / "images", 34), tmp_path / "onnx" / "model.onnx"
    words = [str(write_checkpoint(tmp_path / "checkpoint.pt")), str(output), "--images", str(images)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        assert to_onnx.main(words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = f"alexnet-triton to-onnx: {output}: cannot be written (file too large)"
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)
    assert list(output.parent.iterdir()) == []
