"""`publish --onnx`: what it makes of a classifier, and what it says of models and labels that it cannot take."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from alexnet_triton.export import publish
from alexnet_triton.serving.repository import Repository

MEAN, STD = "123.675,116.28,103.53", "58.395,57.12,57.375"
INPUT = ("input", TensorProto.FLOAT, ["N", 3, 8, 8])
OUTPUTS = [("scores", ["N", 3])]


def graph(
    nodes: list[onnx.NodeProto] | None = None,
    inputs: list[tuple[str, int, list[int | str]]] | None = None,
    outputs: list[tuple[str, list[int | str]]] | None = None,
    opset: int = 13,
) -> bytes:
    """The mean of each channel as its score, or what `nodes` make of the input."""
    means = [
        helper.make_node("GlobalAveragePool", ["input"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["scores"]),
    ]
    model = helper.make_graph(
        nodes or means,
        "means",
        [helper.make_tensor_value_info(*value) for value in inputs or [INPUT]],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs or OUTPUTS],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("elsewhere", 1)]
    return helper.make_model(model, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("red\ngreen\nblue\n")
    return path


def run(model: bytes, labels: Path, *flags: str) -> tuple[int, Path]:
    path, repository = labels.with_name("model.onnx"), labels.with_name("built")
    path.write_bytes(model)
    words = ["--onnx", path, "--labels", labels, "--name", "means", "--repository", repository, *flags]
    return publish.main(list(map(str, words))), repository


def test_a_published_classifier_takes_pixels(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, repository = run(graph(), labels, "--mean", MEAN, "--std", STD)
    assert code == 0
    assert capsys.readouterr().out == f"version 1 in {repository}\n"
    session = onnxruntime.InferenceSession(repository / "means/1/model.onnx", providers=["CPUExecutionProvider"])
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[0, ..., 0] = pixels[1, ..., 2] = 255
    assert session.run(None, {"images": pixels})[0].argmax(axis=1).tolist() == [0, 2]


def test_it_says_where_there_is_no_batching(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = [
        helper.make_node("GlobalAveragePool", ["input"], ["pool"]),
        helper.make_node("Squeeze", ["pool"], ["vector"]),
        helper.make_node("Constant", [], ["axis"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["vector", "axis"], ["scores"]),
    ]
    code, repository = run(graph(single, [("input", TensorProto.FLOAT, [1, 3, 8, 8])], [("scores", [1, 3])]), labels)
    assert code == 0
    assert "without batching" in capsys.readouterr().out
    assert Repository.open(repository, "cpu").configs["means"].max_batch_size == 1


def pooled(*more: onnx.NodeProto) -> list[onnx.NodeProto]:
    pool = helper.make_node("GlobalAveragePool", ["input"], ["pool"])
    return [pool, helper.make_node("Flatten", ["pool"], ["flat"]), *more]


NAN = helper.make_node("Constant", [], ["nan"], value_float=float("nan"))
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated": (lambda: graph()[:100], "damaged or not valid ONNX"),
    "two inputs": (lambda: graph(inputs=[INPUT, ("mask", TensorProto.FLOAT, ["N", 3])]), "2 inputs (input, mask)"),
    "two outputs": (
        lambda: graph(pooled(helper.make_node("Relu", ["flat"], ["scores"])), outputs=[*OUTPUTS, ("flat", ["N", 3])]),
        "2 outputs (scores, flat)",
    ),
    "no such operator": (lambda: graph(pooled(helper.make_node("Foo", ["flat"], ["scores"]))), "Foo"),
    "operator of another domain": (
        lambda: graph(pooled(helper.make_node("Bar", ["flat"], ["scores"], domain="elsewhere"))),
        "ONNX Runtime cannot run it: ",
    ),
    "not an image": (
        lambda: graph(inputs=[("input", TensorProto.FLOAT, ["N", 1, 8, 8])]),
        "[any, 1, 8, 8], no RGB image",
    ),
    "not square": (lambda: graph(inputs=[("input", TensorProto.FLOAT, ["N", 3, 8, 9])]), "square"),
    "of any size": (lambda: graph(inputs=[("input", TensorProto.FLOAT, ["N", 3, "H", "W"])]), "--size"),
    "of another type": (lambda: graph(inputs=[("input", TensorProto.DOUBLE, ["N", 3, 8, 8])]), "DOUBLE"),
    "old": (lambda: graph(opset=6), "opset 6"),
    "wrong number of classes": (
        lambda: graph(
            pooled(helper.make_node("Concat", ["flat", "flat"], ["scores"], axis=1)), outputs=[("scores", ["N", 6])]
        ),
        "gives 6 scores for 3 labels",
    ),
    "not a number": (lambda: graph(pooled(NAN, helper.make_node("Mul", ["flat", "nan"], ["scores"]))), "not finite"),
    "fixed batch": (
        lambda: graph(
            pooled(
                helper.make_node("Constant", [], ["shape"], value_ints=[6]),
                helper.make_node("Reshape", ["flat", "shape"], ["vector"]),
                helper.make_node("Constant", [], ["back"], value_ints=[2, 3]),
                helper.make_node("Reshape", ["vector", "back"], ["scores"]),
            ),
            [("input", TensorProto.FLOAT, [2, 3, 8, 8])],
            [("scores", [2, 3])],
        ),
        "works in batches of 2 only",
    ),
}


@pytest.mark.parametrize(("model", "says"), BAD.values(), ids=BAD.keys())
def test_bad_model_is_one_line(
    model: Callable[[], bytes], says: str, labels: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, repository = run(model(), labels)
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 1
    assert line.startswith(f"alexnet-triton publish: {labels.with_name('model.onnx')}: ")
    assert says in line
    assert not repository.exists()


@pytest.mark.parametrize(
    ("content", "says"), [(b"red\n\nblue\n", "line 2 is empty"), (b"", "line 1 is empty"), (b"\xff\xfe", "utf-8")]
)
def test_bad_labels_are_one_line(content: bytes, says: str, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels.write_bytes(content)
    assert run(graph(), labels)[0] == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"alexnet-triton publish: {labels}: ")
    assert says in line


def test_absent_files_are_one_line(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = ["--repository", str(labels.with_name("built"))]
    assert publish.main(["--onnx", "absent.onnx", "--labels", str(labels), *repository]) == 1
    assert publish.main(["--onnx", "absent.onnx", "--labels", "absent.txt", *repository]) == 1
    model, names = capsys.readouterr().err.splitlines()
    assert "absent.onnx: no such model" in model
    assert "absent.txt: no readable list of labels" in names


def test_uint8_models_have_a_mean_of_their_own(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Cast", ["input"], ["float"], to=TensorProto.FLOAT), *pooled()]
    nodes[1].input[0] = "float"
    nodes[2].output[0] = "scores"
    model = graph(nodes, [("input", TensorProto.UINT8, ["N", 3, 8, 8])])
    assert run(model, labels)[0] == 0
    assert run(model, labels, "--mean", MEAN)[0] == 1
    assert "leave out --mean and --std" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--mean", "1,2"], ["--mean", "a"], ["--std", "1,0,1"], ["--logits", "--probabilities"]]
)
def test_impossible_options_are_a_usage_error(flags: list[str], labels: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        run(graph(), labels, *flags)
    assert raised.value.code == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *(("classify", "is a model of every repository"), ("preprocess", "is a model of every repository")),
        *(("preprocess_224", "is a model of every repository"), ("../x", "no name for a model")),
        *(("", "no name for a model"), (".previous", "no name for a model"), ("a/b", "no name for a model")),
        *(("x" * 64, "no name for a model"), ("resnet50\n", "no name for a model"), ("Ä", "no name for a model")),
    ],
)
def test_a_name_that_would_leave_the_repository_or_take_a_model_s_place(
    name: str, says: str, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(graph(), labels, "--name", name)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in labels.parent.iterdir()) == ["labels.txt", "model.onnx"]
