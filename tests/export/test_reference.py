"""The reference images of a publication notice a wrong decoder; a plan of another model is not published."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexnet_triton.common.files import sha256
from alexnet_triton.export import prepare, publish
from alexnet_triton.export.errors import PublishError
from alexnet_triton.export.numerics import onnx_runtime
from alexnet_triton.imaging import decode
from alexnet_triton.serving.control import judge
from alexnet_triton.serving.errors import StartError, WrongAnswerError
from alexnet_triton.serving.repository import TOLERANCES, Repository
from tests.serving.tiny import CLASSES, LABELS, SIZE, jpeg, running_server

ROW = {"precision": "fp32", "images": 1000, "top1": 0.9, "top5": 1.0, "agreement": 1.0, "distance": 0.0}
GRID = 16  # the network looks at the mean colours of a grid of so many cells a side


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that sees where which colour is: the mean colours of cells, and a layer that weighs them."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    cell = SIZE // GRID
    weights = np.random.default_rng(0).normal(0, 0.002, (3 * (SIZE // cell) ** 2, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["cells"], kernel_shape=[cell, cell], strides=[cell, cell]),
        helper.make_node("Flatten", ["cells"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "cells",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "weights")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(made, {"classes": json.dumps(LABELS)})
    onnx.save(made, path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, as it were, in a class's folder."""
    folder = tmp_path_factory.mktemp("images") / "Bag"
    folder.mkdir()
    for seed in range(40):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed))
    return folder.parent


@pytest.fixture
def repository(model: Path, images: Path, tmp_path: Path) -> Path:
    publish.publish(model, images, tmp_path / "built")
    return tmp_path / "built"


def test_several_images_of_middling_confidence_and_whole_answers(repository: Path, model: Path) -> None:
    answers = Repository.open(repository, "cpu").reference_answers("1")
    assert len(answers) == len({answer.image for answer in answers}) == prepare.REFERENCE_IMAGES
    assert len({answer.index for answer in answers}) >= 3
    run = onnx_runtime(model)
    for answer in answers:
        assert 0.2 < answer.probabilities[answer.index] < 0.95
        given = run(decode(answer.image, SIZE)[None])[0].tolist()
        assert len(answer.probabilities) == len(given)
        judge(answer, given)
    manifest = json.loads((repository / "classify/1/manifest.json").read_text())
    assert min(manifest["reference_images"]["times_the_tolerance"].values()) > 1


def swapped(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., ::-1]


def shifted(pixels: np.ndarray) -> np.ndarray:
    return np.roll(pixels, 3, axis=0)


@pytest.mark.parametrize("wrong", [swapped, shifted])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_wrong_pixels_are_noticed_within_each_precision_s_tolerance(
    wrong: Callable[[np.ndarray], np.ndarray], precision: str, model: Path, images: Path
) -> None:
    _, labels, network = prepare.describe(model, "alexnet")
    candidates = prepare.find_candidates(images, labels, SIZE)
    chosen = prepare.choose_references(model, candidates, labels, network, {"fp32": model, precision: model})
    run = onnx_runtime(model)

    def ask_all() -> None:
        for answer in chosen.answers:
            judge(answer, run(wrong(decode(answer.image, SIZE))[None])[0].tolist())

    with pytest.raises(WrongAnswerError, match="for its reference image"):
        ask_all()


@pytest.mark.parametrize("wrong", ["result[..., ::-1].copy()", "__import__('numpy').roll(result, 3, axis=2)"])
def test_a_server_that_decodes_wrongly_does_not_start(repository: Path, wrong: str) -> None:
    decoder = repository / "preprocess/1/model.py"
    text = decoder.read_text()
    assert text.count('pb_utils.Tensor("images", result)') == 1
    decoder.write_text(text.replace('Tensor("images", result)', f'Tensor("images", {wrong})'))
    with pytest.raises(StartError, match="for its reference image"), running_server(repository):
        pass


def test_a_plan_of_another_model_is_not_published(repository: Path, model: Path, tmp_path: Path) -> None:
    """As after a new export, with the plan of the one before still beside it."""
    (tmp_path / "new").mkdir()
    new, plan = tmp_path / "new/model.onnx", tmp_path / "new/model.plan"
    new.write_bytes(model.read_bytes())
    plan.write_bytes(b"plan")
    (tmp_path / "new/report.json").write_text(json.dumps({"rows": [ROW], "sha256": {"model.onnx": sha256(new)}}))
    profile = {"max": [32, 227, 227, 3]}
    sidecar = {"purpose": "for Triton", "plan": {"sha256": sha256(plan)}, "profile": profile}
    with running_server(repository) as server:
        sidecar["onnx"] = {"file": "model.onnx", "sha256": "of the one before"}
        (tmp_path / "new/model.plan.json").write_text(json.dumps(sidecar))
        with pytest.raises(
            PublishError, match=r"model.plan: built from another model.onnx than the one that is pub.*rem"
        ):
            publish.publish(new, None, repository)
        server.check()
        assert server.control.versions("classify") == ["1"]
        sidecar["onnx"]["sha256"] = sha256(new)
        (tmp_path / "new/model.plan.json").write_text(json.dumps(sidecar))
        assert publish.publish(new, None, repository) == 2
    assert (repository / "alexnet/2/model.plan").read_bytes() == b"plan"
