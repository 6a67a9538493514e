"""FP32 ONNX to INT8 with Q/DQ nodes, one file for OpenVINO and TensorRT.

TensorRT takes zero-points of 0 only: activations are symmetric, weights symmetric per channel.
"""

import io
import logging
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from alexnet_triton.export.errors import ExportError
from alexnet_triton.export.onnx_file import INPUT, write_together

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
CALIBRATION_BATCH = 16
OPTIONS: dict[str, Any] = {
    "quant_format": QuantFormat.QDQ,
    "op_types_to_quantize": ["Conv", "Gemm"],  # all the arithmetic; what is between them stays float32
    "per_channel": True,
    "activation_type": QuantType.QInt8,
    "weight_type": QuantType.QInt8,
    "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
}


class _Reader(CalibrationDataReader):
    """Calibration images, a batch at a time, until they are used up."""

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
    fp32: Path, output: Path, pixels: np.ndarray, method: str, advance: Callable[[int], None] = lambda images: None
) -> None:
    """Write `output`, the INT8 network, with ranges of its activations calibrated on `pixels`.

    Args:
        pixels: training images, uint8 [N, S, S, 3].
        method: a key of `METHODS`.
        advance: hears of each batch of images used.

    Raises:
        ExportError: ONNX Runtime cannot quantize this graph, or the file cannot be written.
    """
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder, "int8.onnx")
        try:
            # From memory: beside a file it would write another, and not notice that the disk there is full.
            source, images = onnx.load(fp32), _Reader(pixels, advance)
            with redirect_stdout(io.StringIO()):  # its remarks on histograms
                quantize_static(source, quantized, images, calibrate_method=METHODS[method], **OPTIONS)
        except Exception as error:  # ONNX Runtime raises bare exceptions of many kinds
            raise ExportError(f"{fp32}: cannot be quantized: {str(error).splitlines()[0]}") from error
        model = onnx.load(quantized)
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in onnx.load(fp32).metadata_props})
    write_together({output: model.SerializeToString(deterministic=True)})
