"""The command `to-onnx`: a checkpoint to ONNX, compared with PyTorch on real images.

The graph takes uint8 images [N, S, S, 3] and gives float32 probabilities [N, classes]. Mean subtraction and softmax
are inside it, and every local response normalisation is one LRN node.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from alexnet_triton.common.command import Parser, finish
from alexnet_triton.common.files import sha256
from alexnet_triton.export import onnx_file
from alexnet_triton.export.errors import ExportError
from alexnet_triton.export.numerics import check_batches, find_images, onnx_runtime
from alexnet_triton.export.onnx_file import INPUT, OUTPUT
from alexnet_triton.training import checkpoint
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.errors import TrainingError
from alexnet_triton.training.model import AlexNet, LocalResponseNorm, Normalize

OPSET = 18
CHECK_IMAGES = 256


class Classifier(nn.Module):
    """uint8 images [N, S, S, 3] to float32 probabilities [N, classes], normalisation of pixels and softmax inside."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        """`network` takes (x - mean) / std of RGB pixel values x from 0 to 255, [N, 3, S, S], and gives logits."""
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.network = network

    @classmethod
    def of(cls, source: Checkpoint) -> "Classifier":
        return cls(source.build(), source.mean, source.std).eval()

    def forward(self, images: Tensor) -> Tensor:
        return torch.softmax(self.network(self.normalize(images)), dim=1)

    def features(self, images: Tensor) -> Tensor:
        """The activations of AlexNet's last hidden layer: uint8 images [N, S, S, 3] to float32 [N, units]."""
        assert isinstance(self.network, AlexNet)
        return self.network.last_hidden(self.normalize(images))

    def run(self, images: np.ndarray) -> np.ndarray:
        """As a `Runner`, without autocast: what every runtime is measured against."""
        with torch.inference_mode():
            return self.forward(torch.from_numpy(images)).numpy()


class OnnxLRN(nn.Module):
    """A local response normalisation that is exported as ONNX's own operator, for which runtimes have a kernel.

    ONNX divides alpha by the size, the 2012 paper does not.
    """

    def __init__(self, source: LocalResponseNorm):
        super().__init__()
        alpha = source.alpha * source.size
        self.attributes: dict[str, Any] = {"alpha": alpha, "beta": source.beta, "bias": source.k, "size": source.size}

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic("LRN", (x,), self.attributes, dtype=torch.float32, shape=x.shape)


def export(source: Checkpoint, source_sha256: str) -> onnx.ModelProto:
    """The network of a checkpoint as an ONNX model; the same checkpoint gives the same bytes."""
    classifier = Classifier.of(source)
    _use_lrn_nodes(classifier)
    properties = describe(source.network.name, source.classes, source.data, source.metrics, source_sha256)
    return trace(classifier, source.network.input_size, properties)


def trace(classifier: Classifier, size: int, metadata: dict[str, str]) -> onnx.ModelProto:
    """A classifier of images [N, size, size, 3] as an ONNX model that carries `metadata`."""
    model = _trace(classifier, torch.zeros(2, size, size, 3, dtype=torch.uint8)).model_proto
    _clear_trace(model)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def _use_lrn_nodes(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LocalResponseNorm):
                setattr(parent, name, OnnxLRN(child))


def _trace(classifier: nn.Module, example: Tensor) -> torch.onnx.ONNXProgram:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            classifier,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        )
    assert program is not None
    return program


def _clear_trace(model: onnx.ModelProto) -> None:
    """Drop source lines and module paths, which differ from machine to machine."""
    model.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")


def describe(
    network: str, classes: Sequence[str], data: str, metrics: dict[str, Any], source_sha256: str
) -> dict[str, str]:
    """What an ONNX model says of itself: its network, classes, data, accuracy, and the SHA-256 of its weights' file."""
    return {
        "network": network,
        "classes": json.dumps(classes, ensure_ascii=False),
        "data": data,
        "accuracy": json.dumps({key: metrics[key] for key in ("top1", "top5") if key in metrics}),
        "checkpoint_sha256": source_sha256,
    }


def open_checkpoint(path: Path) -> tuple[Checkpoint, str]:
    """A checkpoint and the SHA-256 of its file.

    Raises:
        ExportError: it is missing, damaged, or its weights are not its network's.
    """
    try:
        return checkpoint.load(path), sha256(path)
    except TrainingError as error:
        raise ExportError(str(error)) from error


def write_checked(model: onnx.ModelProto, classifier: Classifier, path: Path, pixels: np.ndarray) -> dict[int, float]:
    """Write a model; returns its largest probability difference from PyTorch at each batch size.

    Raises:
        AccuracyError: a difference is above the tolerance.
        WriteError: the file cannot be written.
    """
    onnx_file.write(model, path)
    return check_batches(onnx_runtime(path), classifier.run, pixels)


def write_checkpoint(checkpoint_path: Path, images: Path, path: Path) -> tuple[int, dict[int, float]]:
    """Write a checkpoint's model, compared on `images`; returns how many they are, and as `write_checked`.

    Raises:
        ExportError: the checkpoint or the images cannot be used.
        AccuracyError, WriteError: as `write_checked`.
    """
    source, source_sha256 = open_checkpoint(checkpoint_path)
    pixels = find_images(images, source.classes, CHECK_IMAGES).pixels(source.network.input_size)
    return len(pixels), write_checked(export(source, source_sha256), Classifier.of(source), path, pixels)


def main(words: Sequence[str]) -> int:
    """Export a checkpoint; returns the exit code."""
    parser = Parser(prog="alexnet-triton to-onnx", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("onnx", type=Path, help="file to write")
    parser.add_argument("--images", type=Path, required=True, help="folder of <class>/ folders to compare answers on")
    options = parser.parse_args(words)
    return finish(parser.prog, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    count, differences = write_checkpoint(options.checkpoint, options.images, options.onnx)
    table = ", ".join(f"batch {batch}: {difference:.1e}" for batch, difference in differences.items())
    print(f"{options.onnx}: largest probability difference from PyTorch, {count} images: {table}")
