"""One network in several runtimes, each as a function of uint8 images [N, S, S, 3] to float32 [N, classes]."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from export.errors import ModelError

Runner = Callable[[np.ndarray], np.ndarray]


def onnx_runtime(model: Path) -> Runner:
    """ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        raise ModelError(f"{model}: ONNX Runtime does not take it: {str(error).splitlines()[0]}") from error
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def openvino(model: Path, precision: str = "f32") -> Runner:
    """OpenVINO on the CPU; `precision` is its inference precision, f32 or bf16."""
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": os.cpu_count() or 1}
    try:
        compiled = ov.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ModelError(f"{model}: OpenVINO does not take it: {str(error).strip().splitlines()[-1]}") from error
    return lambda images: compiled(images)[0]
