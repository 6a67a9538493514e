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
from alexnet_triton.export.images import find_images
from alexnet_triton.export.numerics import Runner, check_batches, onnx_runtime
from alexnet_triton.export.onnx_file import INPUT, OUTPUT
from alexnet_triton.training import checkpoint
from alexnet_triton.training.checkpoint import Checkpoint
from alexnet_triton.training.errors import TrainingError
from alexnet_triton.training.model import LocalResponseNorm, Normalize

OPSET = 18
CHECK_IMAGES = 256
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class Classifier(nn.Module):
    """uint8 images [N, S, S, 3] to float32 probabilities [N, classes].

    The graph fixes the precision of convolutions and fully-connected layers, as strongly typed TensorRT networks
    need it. Normalisation of pixels and softmax are always float32.
    """

    def __init__(self, source: Checkpoint, precision: str = "fp32"):
        super().__init__()
        self.normalize = Normalize(source.mean, source.std)
        self.dtype = DTYPES[precision]
        self.network = source.build().to(self.dtype)

    def forward(self, images: Tensor) -> Tensor:
        return torch.softmax(self.network(self._pixels(images)).float(), dim=1)

    def features(self, images: Tensor) -> Tensor:
        """The activations of the last hidden layer: uint8 images [N, S, S, 3] to float32 [N, units]."""
        return self.network.last_hidden(self._pixels(images)).float()

    def _pixels(self, images: Tensor) -> Tensor:
        return self.normalize(images).to(self.dtype)


class OnnxLRN(nn.Module):
    """A local response normalisation that is exported as ONNX's own operator, for which runtimes have a kernel.

    ONNX divides alpha by the size, the 2012 paper does not. It stays float32 in a float16 network: squares overflow
    float16 from an activation of 256 on.
    """

    def __init__(self, source: LocalResponseNorm):
        super().__init__()
        alpha = source.alpha * source.size
        self.attributes: dict[str, Any] = {"alpha": alpha, "beta": source.beta, "bias": source.k, "size": source.size}

    def forward(self, x: Tensor) -> Tensor:
        y = torch.onnx.ops.symbolic("LRN", (x.float(),), self.attributes, dtype=torch.float32, shape=x.shape)
        return y.to(x.dtype)


def export(source: Checkpoint, source_sha256: str, precision: str = "fp32") -> onnx.ModelProto:
    """The network of a checkpoint as an ONNX model; the same checkpoint gives the same bytes.

    `precision` is fp32 or fp16. Images are uint8 and probabilities float32 in both.
    """
    classifier = Classifier(source, precision).eval()
    _use_lrn_nodes(classifier)
    size = source.network.input_size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    model = _trace(classifier, example).model_proto
    _clear_trace(model)
    onnx.helper.set_model_props(model, _metadata(source, source_sha256))
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


def _metadata(source: Checkpoint, source_sha256: str) -> dict[str, str]:
    return {
        "network": source.network.name,
        "classes": json.dumps(source.classes, ensure_ascii=False),
        "data": source.data,
        "accuracy": json.dumps({key: source.metrics[key] for key in ("top1", "top5") if key in source.metrics}),
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


def pytorch_runner(source: Checkpoint) -> Runner:
    """The checkpoint in PyTorch, float32 without autocast: what every runtime is measured against."""
    classifier = Classifier(source).eval()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return classifier(torch.from_numpy(images)).numpy()

    return run


def write_checked(source: Checkpoint, source_sha256: str, path: Path, pixels: np.ndarray) -> dict[int, float]:
    """Write the float32 model; returns its largest probability difference from PyTorch at each batch size.

    Raises:
        AccuracyError: a difference is above the tolerance.
        WriteError: the file cannot be written.
    """
    onnx_file.write(export(source, source_sha256), path)
    return check_batches(onnx_runtime(path), pytorch_runner(source), pixels)


def main(words: Sequence[str]) -> int:
    """Export a checkpoint; returns the exit code."""
    parser = Parser(prog="alexnet-triton to-onnx", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("onnx", type=Path, help="file to write")
    parser.add_argument("--images", type=Path, required=True, help="folder of <class>/ folders to compare answers on")
    options = parser.parse_args(words)
    return finish(parser.prog, lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    source, source_sha256 = open_checkpoint(options.checkpoint)
    pixels = find_images(options.images, source.classes, CHECK_IMAGES).pixels(source.network.input_size)
    differences = write_checked(source, source_sha256, options.onnx, pixels)
    table = ", ".join(f"batch {batch}: {difference:.1e}" for batch, difference in differences.items())
    print(f"{options.onnx}: largest probability difference from PyTorch, {len(pixels)} images: {table}")
