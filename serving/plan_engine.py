"""The network on a GPU, in Python: a plan in TensorRT's own runtime, for the variant `gpu-python` of `alexnet`.

Each engine has a stream, page-locked buffers, and a CUDA graph for each of `GRAPH_SIZES`. The official image's TensorRT
backend does the same without Python, and is the faster way. On a GPU: not run: no GPU.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.serving.cuda import Device
from alexnet_triton.serving.engine import BatchEngine, Engine, EngineConfig
from alexnet_triton.serving.errors import EngineError

PLAN = "model.plan"
INPUT, OUTPUT = "images", "probabilities"
GRAPH_SIZES = (1, 2, 4, 8, 12, 16, 24, 32)  # a batch runs in the smallest graph that holds it


def load_engine(folder: Path, config: EngineConfig, device_number: int = 0) -> BatchEngine:
    """The engine that a configuration names, on a version's folder.

    Raises:
        EngineError: a file is missing, or the engine does not take it.
    """
    return PlanEngine(folder, config, Device(device_number)) if config.engine == "tensorrt" else Engine(folder, config)


def load_tensorrt() -> Any:
    """The module tensorrt.

    Raises:
        EngineError: it is not installed.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise EngineError(f"tensorrt is not installed: pip install 'alexnet-triton[gpu]' ({error})") from error


def collecting_logger(trt: Any) -> Any:
    """A logger that collects warnings and errors: TensorRT's functions return None and log why."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.messages.append(message)

    return Logger()


def deserialize(trt: Any, plan: bytes, *, host_code: bool = False) -> Any:
    """A plan as an engine on the GPU. `host_code` lets a version-compatible plan run the code that it contains.

    Raises:
        EngineError: this TensorRT or this GPU cannot load it.
    """
    log = collecting_logger(trt)
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = " ".join(next(iter(log.messages), "it gives no reason").split())
        raise EngineError(f"TensorRT {trt.__version__} cannot load the plan: {reason}; build it again on this machine")
    return engine


class PlanEngine(BatchEngine):
    """A plan on one GPU; not for several threads at once."""

    def __init__(self, folder: Path, config: EngineConfig, device: Device, trt: Any = None) -> None:
        """Load `model.plan` of `folder` and capture its graphs.

        Raises:
            EngineError: the file is missing, TensorRT does not load it, or the GPU has no memory for it.
        """
        path = folder / PLAN
        if not path.is_file():
            raise EngineError(f"no {path}: build a plan with alexnet-triton build-engine, and publish it")
        trt = trt or load_tensorrt()
        self._device, engine = device, deserialize(trt, path.read_bytes())
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{path}: no execution context; is the GPU's memory full?")
        largest, *image = engine.get_tensor_profile_shape(INPUT, 0)[2]
        largest = min(largest, config.max_batch_size)
        self._batch = device.pinned((largest, *image), np.uint8)
        self._answers = device.pinned((largest, engine.get_tensor_shape(OUTPUT)[1]), np.float32)
        self._addresses = {INPUT: device.allocate(self._batch.nbytes), OUTPUT: device.allocate(self._answers.nbytes)}
        for name, address in self._addresses.items():
            self._context.set_tensor_address(name, address)
        self.graphs = {size: self._capture(size) for size in sorted({*GRAPH_SIZES, largest}) if size <= largest}
        self.description = f"{PLAN} in TensorRT {trt.__version__}, graphs of {', '.join(map(str, self.graphs))} images"

    def _capture(self, size: int) -> Callable[[], None]:
        """A graph of the network at a batch size. TensorRT wants one run at a shape before it is captured."""
        self.enqueue(size)
        self.synchronize()
        return self._device.capture(lambda: self._enqueue())

    def enqueue(self, size: int) -> None:
        """Begin to run the network on a batch of so many images, layer by layer, without a graph."""
        if not self._context.set_input_shape(INPUT, (size, *self._batch.shape[1:])):
            raise EngineError(f"the plan takes no batch of {size} images")
        self._enqueue()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._device.stream):
            raise EngineError("TensorRT: the plan did not run; see what nvidia-smi says")

    def infer(self, images: np.ndarray) -> np.ndarray:
        """Uint8 [n, height, width, 3] to probabilities, float32 [n, classes], which later calls leave alone."""
        count = len(images)
        if not np.may_share_memory(images, self._batch):
            self._batch[:count] = images
        self.copy_in(count)
        self.launch(count)
        self.copy_out(count)
        self.synchronize()
        return self._answers[:count].copy()

    def copy_in(self, count: int) -> None:
        """Begin to copy the first images of the page-locked batch to the GPU."""
        self._device.copy_in(self._addresses[INPUT], self._batch[:count])

    def launch(self, count: int) -> None:
        """Begin to run the graph for so many images; beyond them it computes what an earlier batch has left there."""
        self.graphs[next(size for size in self.graphs if size >= count)]()

    def copy_out(self, count: int) -> None:
        """Begin to copy the first answers from the GPU."""
        self._device.copy_out(self._answers[:count], self._addresses[OUTPUT])

    def synchronize(self) -> None:
        """Wait for what has begun."""
        self._device.synchronize()
