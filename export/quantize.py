"""FP32 ONNX to INT8 with Q/DQ nodes, one file for OpenVINO and TensorRT.

TensorRT takes no zero-point but 0, so activations are symmetric, and weights symmetric per channel.
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

from alexnet_triton.export import onnx_file
from alexnet_triton.export.errors import ExportError
from alexnet_triton.export.images import LabelledImages
from alexnet_triton.export.numerics import openvino, run_in_batches
from alexnet_triton.export.onnx_file import INPUT
from alexnet_triton.training.scores import topk_hits

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
CALIBRATION_IMAGES = 128  # entropy and percentile calibration keep all activations of all of them
CALIBRATION_BATCH = 16
OPTIONS: dict[str, Any] = {
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
    fp32: Path, output: Path, pixels: np.ndarray, method: str, advance: Callable[[int], None] = lambda images: None
) -> None:
    """Write the INT8 network to `output`, with the ranges of its activations calibrated on `pixels`.

    Args:
        pixels: training images, uint8 [N, S, S, 3].
        method: a key of `METHODS`.
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
            with redirect_stdout(io.StringIO()):  # its remarks on histograms
                quantize_static(source, quantized, reader, calibrate_method=METHODS[method], **OPTIONS)
        except Exception as error:  # ONNX Runtime raises bare exceptions of many kinds
            raise ExportError(f"{fp32}: cannot be quantized: {str(error).splitlines()[0]}") from error
        model = onnx.load(quantized)
    onnx.helper.set_model_props(model, onnx_file.metadata(source))
    onnx_file.write(model, output)


def quantize_best(
    fp32: Path, output: Path, images: LabelledImages, size: int, start_bar: Callable[[str, int], Callable[[int], None]]
) -> dict[str, dict[str, float]]:
    """Write the INT8 network by the method that does best on the images after the first `CALIBRATION_IMAGES`.

    Args:
        images: training images; the first ones calibrate.
        start_bar: starts a bar of progress of a name and a total; what it returns is called with the images done.

    Returns:
        For each method, top-1 and the fraction of the images on which it agrees with `fp32`.
    """
    pixels = images.pixels(size)
    calibrating, held_out = pixels[:CALIBRATION_IMAGES], pixels[CALIBRATION_IMAGES:]
    labels = images.labels[CALIBRATION_IMAGES:]
    expected = run_in_batches(openvino(fp32), held_out).argmax(axis=1)
    candidates = {method: output.with_name(f"{method}.{output.name}") for method in METHODS}
    found: dict[str, dict[str, float]] = {}
    for method, candidate in candidates.items():
        quantize(fp32, candidate, calibrating, method, start_bar(f"int8, {method}", CALIBRATION_IMAGES))
        answers = run_in_batches(openvino(candidate), held_out)
        agreement = float((answers.argmax(axis=1) == expected).mean())
        found[method] = {"top1": topk_hits(answers, labels, 1), "agreement": agreement}
    best = max(found, key=lambda method: (found[method]["top1"], found[method]["agreement"]))
    candidates.pop(best).replace(output)
    for candidate in candidates.values():
        candidate.unlink()
    return found
