"""Classifiers of every layout, type and batch, adapted and compared with what they answered before."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from alexnet_triton.export import adapt, onnx_file, tensorrt
from alexnet_triton.export.errors import ModelError
from alexnet_triton.export.tensorrt import PlanConfig

SIZE, CLASSES, FEATURES = 12, 5, 8
LABELS = tuple(f"class {n}" for n in range(CLASSES))
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)
FLOATS: dict[str, Any] = {"float": np.float32, "float16": np.float16, "uint8": np.float32}
KINDS = {"float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


class Classifier:
    """A small convolutional classifier, built node by node in the form that is asked for."""

    def __init__(
        self,
        layout: str = "NCHW",
        kind: str = "float",
        batch: int | str = "N",
        head: str = "flatten",
        softmax: bool = False,
        *,
        names: tuple[str, str] = ("input", "output"),
        opset: int = 18,
        size: int | str = SIZE,
    ):
        self.layout, self.kind, self.names = layout, kind, names
        self.random = np.random.default_rng(1)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = names[0]
        self._body(head, softmax)
        self.nodes[-1].output[0] = names[1]
        self.model = self._model(batch, opset, size, [CLASSES, 1, 1] if head == "1x1" else [CLASSES])

    def add(self, operator: str, *inputs: str, **attributes: Any) -> None:
        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [self.last, *inputs], [output], **attributes))
        self.last = output

    def weight(self, *shape: int) -> str:
        return self.constant(self.random.normal(size=shape).astype(FLOATS[self.kind]) * 0.3)

    def constant(self, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, f"weight_{len(self.weights)}"))
        return self.weights[-1].name

    def _body(self, head: str, softmax: bool) -> None:
        if self.layout == "NHWC":
            self.add("Transpose", perm=[0, 3, 1, 2])
        if self.kind == "uint8":
            self.add("Cast", to=TensorProto.FLOAT)
            self.add("Div", self.constant(np.array(255, np.float32)))
        self.add("Conv", self.weight(FEATURES, 3, 3, 3), self.weight(FEATURES))
        self.add("Relu")
        self.add("GlobalAveragePool")
        if head == "1x1":
            self.add("Conv", self.weight(CLASSES, FEATURES, 1, 1))
        else:
            self._flatten(head)
            self.add("Gemm", self.weight(FEATURES, CLASSES), self.weight(CLASSES))
        if softmax:
            self.add("Softmax", axis=1)

    def _flatten(self, head: str) -> None:
        if head == "flatten":
            self.add("Flatten")
        elif head == "reshape":  # the batch of 1 is written into the graph
            self.add("Reshape", self.constant(np.array([1, FEATURES])))
        elif head == "allowzero":  # as PyTorch's exporter writes it
            self.add("Reshape", self.constant(np.array([1, FEATURES])), allowzero=1)
        elif head == "single":  # the batch is lost on the way
            self.add("Reshape", self.constant(np.array([FEATURES])))
            self.add("Reshape", self.constant(np.array([1, FEATURES])))
        elif head == "mixing":  # an image's scores depend on its neighbours in the batch
            self.add("Flatten")
            self.nodes.append(helper.make_node("ReduceMean", [self.last], ["mean"], axes=[0], keepdims=1))
            self.add("Sub", "mean")

    def _model(self, batch: int | str, opset: int, size: int | str, output: list[int]) -> onnx.ModelProto:
        shape = [3, size, size] if self.layout == "NCHW" else [size, size, 3]
        images = helper.make_tensor_value_info(self.names[0], KINDS[self.kind], [batch, *shape])
        answer_kind = TensorProto.FLOAT16 if self.kind == "float16" else TensorProto.FLOAT
        scores = helper.make_tensor_value_info(self.names[1], answer_kind, [batch, *output])
        graph = helper.make_graph(self.nodes, "classifier", [images], [scores], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def probabilities(self, images: np.ndarray, softmax: bool) -> np.ndarray:
        """What the model itself answers, image by image, to uint8 [N, S, S, 3]."""
        prepared = images
        if self.kind != "uint8":
            prepared = ((images.astype(np.float32) - MEAN) / STD).astype(FLOATS[self.kind])
        if self.layout == "NCHW":
            prepared = prepared.transpose(0, 3, 1, 2)
        session = onnxruntime.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])
        answers = [session.run(None, {self.names[0]: image[None]})[0].reshape(1, CLASSES) for image in prepared]
        scores = np.concatenate(answers).astype(np.float32)
        exponentials = np.exp(scores)
        return exponentials / exponentials.sum(axis=1, keepdims=True) if softmax else scores

    def adapted(self, **options: Any) -> adapt.Adapted:
        normalization = {} if self.kind == "uint8" else {"mean": MEAN, "std": STD}
        return adapt.adapt(self.model, LABELS, **{**normalization, **options})


def answers(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (7, SIZE, SIZE, 3), np.uint8)


FORMS = list(
    itertools.product(("NCHW", "NHWC"), KINDS, (("N", "flatten"), (1, "reshape"), ("N", "1x1")), (False, True))
)


@pytest.mark.parametrize(("layout", "kind", "shape", "softmax"), FORMS)
def test_every_form_answers_as_before(
    layout: str, kind: str, shape: tuple[Any, str], softmax: bool, images: np.ndarray
) -> None:
    source = Classifier(layout, kind, *shape, softmax)
    adapted = source.adapted()
    assert (adapted.size, adapted.max_batch_size, adapted.note) == (SIZE, 32, "")
    onnx_file.check_signature(adapted.model, "adapted")
    assert onnx_file.dims(adapted.model.graph.input[0]) == [None, SIZE, SIZE, 3]
    expected = source.probabilities(images, softmax=not softmax)
    for batch in (1, 2, 7):
        found = answers(adapted.model, images[:batch])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:batch], atol=3e-3 if kind == "float16" else 1e-6)
    order = [node.op_type for node in adapted.model.graph.node]
    assert order[0] == "Cast"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", KINDS)
def test_tensorrt_takes_every_form(layout: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(Classifier(layout, kind).adapted().model.SerializeToString())
    built = tensorrt.build(tensorrt.load(rtx=True), path, PlanConfig(2, 4), None)
    assert built.signature["inputs"] == [{"name": "images", "dtype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}]
    assert built.signature["outputs"] == [{"name": "probabilities", "dtype": "FLOAT", "shape": [-1, CLASSES]}]


@pytest.mark.parametrize(
    ("batch", "head", "reason"),
    [(1, "single", "one image at a time"), ("N", "mixing", "answers to batches and to single images differ")],
)
def test_what_takes_no_batches_stays_at_one_with_a_note(batch: Any, head: str, reason: str, images: np.ndarray) -> None:
    source = Classifier(batch=batch, head=head, opset=11)
    adapted = source.adapted()
    assert adapted.max_batch_size == 1
    assert reason in adapted.note
    assert onnx_file.dims(adapted.model.graph.input[0])[0] == 1
    found = np.concatenate([answers(adapted.model, image[None]) for image in images])
    np.testing.assert_allclose(found, source.probabilities(images, softmax=True), atol=1e-6)


@pytest.mark.parametrize(("batch", "head"), [(1, "allowzero"), (4, "flatten"), ("N", "reshape")])
def test_a_batch_that_is_written_into_the_graph_is_freed(batch: Any, head: str, images: np.ndarray) -> None:
    adapted = Classifier(batch=batch, head=head).adapted()
    assert (adapted.max_batch_size, adapted.note) == (32, "")
    expected = Classifier().probabilities(images, softmax=True)
    np.testing.assert_allclose(answers(adapted.model, images), expected, atol=1e-6)


@pytest.mark.parametrize("softmax", [False, True])
def test_what_the_caller_says_of_the_scores_holds(softmax: bool, images: np.ndarray) -> None:
    source = Classifier(softmax=softmax)
    logits = answers(source.adapted(scores="logits").model, images)
    np.testing.assert_allclose(logits, source.probabilities(images, softmax=True), atol=1e-6)
    as_they_are = answers(source.adapted(scores="probabilities").model, images)
    np.testing.assert_allclose(as_they_are, source.probabilities(images, softmax=False), atol=1e-6)


@pytest.mark.parametrize("names", [("images", "probabilities"), ("probabilities", "images")])
@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_names_and_opsets(names: tuple[str, str], opset: int, images: np.ndarray) -> None:
    source = Classifier(names=names, opset=opset)
    expected = source.probabilities(images, softmax=True)
    np.testing.assert_allclose(answers(source.adapted().model, images), expected, atol=1e-6)


def test_adapted_again_it_is_the_same(images: np.ndarray) -> None:
    once = Classifier().adapted().model
    thrice = adapt.adapt(adapt.adapt(once, LABELS).model, LABELS).model
    np.testing.assert_allclose(answers(thrice, images), answers(once, images), atol=1e-6)


def test_size_of_a_model_that_takes_any(images: np.ndarray) -> None:
    source = Classifier(size="S")
    assert source.adapted(size=SIZE).size == SIZE
    with pytest.raises(ModelError, match="--size"):
        source.adapted()


def test_metadata_names_the_classes_and_keeps_the_rest() -> None:
    source = Classifier()
    helper.set_model_props(source.model, {"author": "somebody", "classes": "other"})
    model = adapt.adapt(source.model, ("Ångström", *LABELS[1:])).model
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["classes"]) == ["Ångström", *LABELS[1:]]
    assert "Ångström" in properties["classes"]
    assert json.loads(properties["adapted"])["scores"] == "logits"
    assert properties["author"] == "somebody"
