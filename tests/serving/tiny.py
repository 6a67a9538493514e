"""A built repository with a network small enough for tests: mean colour to ten classes."""

import io
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from alexnet_triton.export.repository import Network, Publication, add_version, set_served_version, stage
from alexnet_triton.imaging import decode
from alexnet_triton.serving import Server
from alexnet_triton.serving.repository import TOLERANCES, ReferenceAnswer, settle_versions

SIZE, CLASSES = 227, 10
PATIENT_S = 30.0  # in a queue: tests share the cores with each other
LABELS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


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


def publication(
    folder: Path,
    seed: int = 0,
    *,
    name: str = "alexnet",
    classes: int = CLASSES,
    size: int = SIZE,
    max_wait_s: float = PATIENT_S,
) -> Publication:
    """What `publish` makes of the small network, which is written to `folder`."""
    model = network(seed)
    path = folder / f"{seed}.onnx"
    onnx.save(model, path)
    references = tuple(reference(model, jpeg(seed=number)) for number in (7, 8))
    manifest = {"precisions": {"fp32": {}}}
    model_of = Network(name, classes, size)
    return Publication(model_of, LABELS[:classes], {"model.onnx": path}, references, manifest, max_wait_s)


def reference(model: onnx.ModelProto, image: bytes) -> ReferenceAnswer:
    """An image and the network's answer to it."""
    probabilities = answer(model, image)
    expected = dict(enumerate(map(float, probabilities)))
    return ReferenceAnswer("new", image, LABELS[int(probabilities.argmax())], expected, TOLERANCES["fp32"])


def write_version(repository: Path, what: Publication) -> int:
    """Add a version, parked, without a smoke test."""
    with stage(repository, what) as staging:
        return add_version(repository, staging, what)


def publish(repository: Path, what: Publication) -> int:
    """Add a version and have it served, without a smoke test; loading it is the caller's."""
    version = write_version(repository, what)
    set_served_version(repository, version)
    settle_versions(repository)
    return version


def build_repository(target: Path, max_wait_s: float = PATIENT_S) -> Path:
    """A repository with one version, as publication leaves it."""
    with tempfile.TemporaryDirectory() as folder:
        publish(target, publication(Path(folder), max_wait_s=max_wait_s))
    return target


@contextmanager
def running_server(repository: Path, *, cores: int = 1, **settings: Any) -> Iterator[Server]:
    """Triton on free ports, killed at the end: an orderly end takes seconds, and tests of its own show it.

    It starts two processes a core, each of which takes a third of a second of one, so that one core is the rule here.
    """
    server = Server(repository, http_port=0, grpc_port=0, metrics_port=0, **settings)
    with on_cores(cores):
        server.start()
    try:
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGKILL)
        server.stop()


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """What this thread starts meanwhile may use `count` of the cores, or all where there are fewer."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, random.sample(sorted(allowed), min(count, len(allowed))))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
