"""A built repository with a network small enough for tests: mean colour to ten classes."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig

from alexnet_triton.imaging import decode

SOURCE = Path(__file__).resolve().parents[2] / "model_repository"
SIZE, CLASSES = 227, 10


def jpeg(seed: int, width: int = 320, height: int = 240) -> bytes:
    """A JPEG of smooth noise: every seed another class and probability."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def network(seed: int = 0) -> onnx.ModelProto:
    """Uint8 NHWC pixels to probabilities; the seed decides which colours are which class."""
    weights = np.random.default_rng(seed).normal(0, 0.05, (3, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answer(model: onnx.ModelProto, encoded: bytes) -> np.ndarray:
    """Probabilities, float32 [10], by onnxruntime and `imaging`."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": decode(encoded, SIZE)[None]})[0][0]


def build_repository(target: Path, version: int = 1, seed: int = 0) -> Path:
    """A repository as publication leaves it."""
    shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("__pycache__"))
    for model in ("alexnet", "classify"):
        (target / model / "1").rename(target / model / str(version))
    model = network(seed)
    onnx.save(model, target / "alexnet" / str(version) / "model.onnx")
    write_reference_answer(target / "classify" / str(version), model)
    return target


def write_reference_answer(folder: Path, model: onnx.ModelProto) -> None:
    image = jpeg(seed=7)
    probabilities = answer(model, image)
    index = int(probabilities.argmax())
    (folder / "known.jpg").write_bytes(image)
    known = {"index": index, "label": "tiny", "probability": float(probabilities[index])}
    (folder / "known.json").write_text(json.dumps(known))


def publish(repository: Path, version: int, seed: int) -> None:
    """Put another version in place as publication does; loading it is the caller's."""
    model = network(seed)
    for name in ("alexnet", "classify"):
        folder = repository / name / f".{version}"
        folder.mkdir()
        if name == "alexnet":
            onnx.save(model, folder / "model.onnx")
            shutil.copy(SOURCE / "alexnet" / "1" / "model.py", folder)
        else:
            write_reference_answer(folder, model)
        folder.rename(repository / name / str(version))
    switch(repository, version)


def switch(repository: Path, version: int) -> None:
    """Let `classify` name a version of `alexnet`."""
    for path in (repository / "classify" / "config.pbtxt", repository / "classify" / "configs" / "cpu.pbtxt"):
        config = text_format.Parse(path.read_text(), ModelConfig())
        config.version_policy.specific.versions[:] = [version]
        config.ensemble_scheduling.step[1].model_version = version
        new = path.with_suffix(".new")
        new.write_text(text_format.MessageToString(config))
        new.replace(path)
