"""An FP32 ONNX model to FP16, and to INT8 with Q/DQ nodes: one file for OpenVINO and TensorRT.

TensorRT takes no zero-point but 0, so activations are symmetric, and weights symmetric per channel. The range of an
activation is its largest magnitude on the calibration images. ONNX Runtime's two other methods are not used. Its
entropy calibration has as many bins as levels and gives the same bytes. Percentile calibration agrees with FP32 on one
image in a thousand more, which is noise, and keeps all activations of all images in memory.

Inputs of convolutions and fully-connected layers are quantized, their outputs are not: an activation function follows,
and what it cuts off would take most of the 8 bits (EfficientNet-Lite0, whose ReLU6 keeps 0 to 6: the same top-1 on 0.65
of the images with quantized outputs, 0.96 without; AlexNet is as fast either way). Depthwise convolutions stay float32:
OpenVINO 2026.4 computes them wrongly in INT8 (0.71 of the images, where ONNX Runtime has 0.94).
"""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from alexnet_triton.export import onnx_file
from alexnet_triton.export.errors import ExportError
from alexnet_triton.export.onnx_file import INPUT

CALIBRATION_IMAGES = 128
CALIBRATION_BATCH = 16
OPTIONS: dict[str, Any] = {
    "calibrate_method": CalibrationMethod.MinMax,
    "quant_format": QuantFormat.QDQ,
    "op_types_to_quantize": ["Conv", "Gemm"],  # all the arithmetic; what lies between them stays float32
    "per_channel": True,
    "activation_type": QuantType.QInt8,
    "weight_type": QuantType.QInt8,
    "extra_options": {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
    },
}
# ONNX Runtime's own, and what overflows float16 (LRN squares activations), loses precision in it, or comes before the
# first layer.
FLOAT32_OPERATORS = [*DEFAULT_OP_BLOCK_LIST, "LRN", "Softmax", "Sub", "Div"]


def to_half(fp32: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float16 weights and arithmetic, as strongly typed TensorRT networks need it in the graph.

    Images stay uint8 and probabilities float32; normalisation of pixels, LRN and softmax stay float32.
    """
    half = convert_float_to_float16(fp32, keep_io_types=True, op_block_list=FLOAT32_OPERATORS)
    ordered = ir.from_proto(half)
    ordered.graph.sort()  # the conversion leaves its last casts after the nodes that read them
    _skip_rounding(ordered.graph)
    RemoveUnusedNodesPass()(ordered)
    return ir.to_proto(ordered)


def _skip_rounding(graph: ir.Graph) -> None:
    """Let every cast to float32 read what a cast to float16 before it reads."""
    for node in graph:
        before = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] else None
        if (
            before
            and before.op_type == "Cast"
            and (_target(before), _target(node)) == (ir.DataType.FLOAT16, ir.DataType.FLOAT)
        ):
            node.replace_input_with(0, before.inputs[0])


def _target(cast: ir.Node) -> int:
    return cast.attributes["to"].as_int()


class _Reader(CalibrationDataReader):
    """Calibration images, a batch at a time."""

    def __init__(self, pixels: np.ndarray, batch: int, advance: Callable[[int], None]):
        self.batches = iter([pixels[start : start + batch] for start in range(0, len(pixels), batch)])
        self.advance = advance

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        if batch is None:
            return None
        self.advance(len(batch))
        return {INPUT: batch}


def quantize(
    fp32: Path, output: Path, pixels: np.ndarray, advance: Callable[[int], None] = lambda images: None
) -> None:
    """Write the INT8 network to `output`, with the ranges of its activations calibrated on `pixels`.

    Args:
        pixels: training images, uint8 [N, S, S, 3].
        advance: called with the number of images after each batch.

    Raises:
        ExportError: ONNX Runtime cannot quantize this graph.
        WriteError: the file cannot be written.
    """
    logging.getLogger().setLevel(logging.ERROR)
    source = onnx.load(fp32)
    for index, node in enumerate(source.graph.node):  # ONNX Runtime leaves nodes out by their names
        node.name = node.name or f"node_{index}"
    fixed, _ = onnx_file.check_signature(source, fp32)
    batch = fixed or CALIBRATION_BATCH
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder, "int8.onnx")
        try:
            # From memory: given a file, it writes another one beside it, and does not notice that the disk is full.
            reader = _Reader(pixels, batch, advance)
            quantize_static(source, quantized, reader, nodes_to_exclude=_depthwise(source), **OPTIONS)
        except Exception as error:  # ONNX Runtime raises bare exceptions of many kinds
            raise ExportError(f"{fp32}: cannot be quantized: {str(error).splitlines()[0]}") from error
        model = onnx.load(quantized)
    onnx.helper.set_model_props(model, onnx_file.metadata(source))
    onnx_file.write(model, output)


def _depthwise(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions of one channel a group."""
    channels = {tensor.name: tensor.dims[1] for tensor in model.graph.initializer if len(tensor.dims) == 4}
    groups = {
        node.name: attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Conv" and attribute.name == "group" and channels.get(node.input[1]) == 1
    }
    return [name for name, count in groups.items() if count > 1]
