"""A TensorRT plan as a runner: uint8 images [N, S, S, 3] to float32 probabilities [N, classes], on the GPU."""

from pathlib import Path
from typing import Any

import numpy as np

from export import tensorrt_api
from export.cuda import Device
from export.errors import ExportError
from export.onnx_file import INPUT, OUTPUT
from export.runners import Runner


def tensorrt(plan: Path, *, host_code: bool = False) -> Runner:
    """A plan that lies in a file; `host_code` lets a version-compatible one run the code that it brings.

    Raises:
        ExportError: there is no TensorRT or no GPU here, or the plan is none of theirs.
    """
    try:
        data = plan.read_bytes()
    except OSError as error:
        raise ExportError(f"{plan}: {error.strerror}; build it: python -m export.build_engine") from error
    trt = tensorrt_api.load()
    device = Device()
    return engine_runner(tensorrt_api.deserialize(trt, data, host_code=host_code), device)


def engine_runner(engine: Any, device: Device) -> Runner:
    """An engine that is loaded; more images than its profile's largest batch run in several."""
    context = engine.create_execution_context()
    if context is None:
        raise ExportError("TensorRT: no execution context for the plan; is the GPU's memory full?")
    largest = engine.get_tensor_profile_shape(INPUT, 0)[2][0]

    def run(images: np.ndarray) -> np.ndarray:
        parts = [images[start : start + largest] for start in range(0, len(images), largest)]
        return np.concatenate([_execute(context, device, part) for part in parts])

    return run


def _execute(context: Any, device: Device, images: np.ndarray) -> np.ndarray:
    if not context.set_input_shape(INPUT, images.shape):
        raise ExportError(f"the plan does not take images of shape {list(images.shape)}")
    probabilities = np.zeros(tuple(context.get_tensor_shape(OUTPUT)), np.float32)
    with device.array(images) as source, device.array(probabilities) as target:
        context.set_tensor_address(INPUT, source)
        context.set_tensor_address(OUTPUT, target)
        if not context.execute_async_v3(device.stream):
            raise ExportError("TensorRT: the plan did not run; look at nvidia-smi")
        device.read(target, probabilities)
    return probabilities
