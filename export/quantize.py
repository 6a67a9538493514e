"""FP32 ONNX to INT8 with Q/DQ nodes, one file for OpenVINO and TensorRT.

TensorRT takes no zero-point but 0, so activations are symmetric, and weights symmetric per channel. The range of an
activation is its largest magnitude on the calibration images. ONNX Runtime's two other methods are not used. Its
entropy calibration has as many bins as levels and gives the same bytes. Percentile calibration agrees with FP32 on one
image in a thousand more, which is noise, and keeps all activations of all images in memory.
"""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

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
    "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
}


class _Reader(CalibrationDataReader):
    """Calibration images, a batch at a time."""

    def __init__(self, pixels: np.ndarray, advance: Callable[[int], None]):
        starts = range(0, len(pixels), CALIBRATION_BATCH)
        self.batches = iter([pixels[start : start + CALIBRATION_BATCH] for start in starts])
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
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder, "int8.onnx")
        try:
            # From memory: given a file, it writes another one beside it, and does not notice that the disk is full.
            reader = _Reader(pixels, advance)
            quantize_static(source, quantized, reader, **OPTIONS)
        except Exception as error:  # ONNX Runtime raises bare exceptions of many kinds
            raise ExportError(f"{fp32}: cannot be quantized: {str(error).splitlines()[0]}") from error
        model = onnx.load(quantized)
    onnx.helper.set_model_props(model, onnx_file.metadata(source))
    onnx_file.write(model, output)
