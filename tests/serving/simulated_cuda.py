"""A stand-in for CUDA's driver interface and for TensorRT's runtime, on a processor. No GPU and no plan is behind it.

Memory "on the GPU" is memory of the host; work in a stream is done at once, or, while a graph is captured, when the
graph is launched. The "plan" is an ONNX file, which ONNX Runtime runs at the addresses that it is given.
"""

import ctypes
import sys
from collections.abc import Callable
from enum import Enum
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime


class CUresult(Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


# What a capturing thread may not call, and what ends the capture: CUDA C++ Programming Guide, "Prohibited and Unhandled
# Operations"; CUDA Driver API reference, cuThreadExchangeStreamCaptureMode, which names cuMemAlloc.
PROHIBITED = ("cuStreamSynchronize", "cuMemAlloc")


class Driver:
    """The functions that `plan_engine` calls, with their signatures of cuda-bindings 13.5; `calls` has their names.

    What is prohibited in a capture fails, and so does a copy in a stream from or to memory that is not page-locked,
    which CUDA would take, and wait.
    """

    CUresult = CUresult
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, memory_bytes: int = 2**30) -> None:
        self.calls: list[str] = []
        self.copied_bytes = 0
        self.capturing: list[Callable[[], None]] | None = None
        self.invalidated = False
        self._pinned: dict[int, int] = {}  # address -> bytes
        self._free_bytes, self._blocks = memory_bytes, {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._numbers = count(1)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cu"):
            self.calls.append(name)
            if name in PROHIBITED and self.capturing is not None:
                self.invalidated = True
                return lambda *arguments: (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 0)
        return super().__getattribute__(name)

    def work(self, step: Callable[[], None]) -> None:
        """Done at once, or part of the graph that is being captured."""
        if self.capturing is None:
            step()
        else:
            self.capturing.append(step)

    def cuInit(self, flags: int) -> tuple[CUresult]:
        return (CUresult.CUDA_SUCCESS,)

    def cuDeviceGet(self, number: int) -> tuple[CUresult, int]:
        return CUresult.CUDA_SUCCESS, number

    def cuDeviceGetPCIBusId(self, size: int, device: int) -> tuple[CUresult, bytes]:
        return CUresult.CUDA_SUCCESS, f"0000:{0x17 + device:02X}:00.0".encode().ljust(size, b"\0")

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[CUresult, int]:
        return CUresult.CUDA_SUCCESS, 1

    def cuCtxSetCurrent(self, context: int) -> tuple[CUresult]:
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamCreate(self, flags: int) -> tuple[CUresult, int]:
        return CUresult.CUDA_SUCCESS, next(self._numbers)

    def cuStreamSynchronize(self, stream: int) -> tuple[CUresult]:
        return (CUresult.CUDA_SUCCESS,)

    def cuMemAlloc(self, size: int) -> tuple[CUresult, int]:
        if size > self._free_bytes:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        self._free_bytes -= size
        return CUresult.CUDA_SUCCESS, self._block(size)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[CUresult, int]:
        address = self._block(size)
        self._pinned[address] = size
        return CUresult.CUDA_SUCCESS, address

    def _block(self, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        self._blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[CUresult]:
        ranges = [(start, start + length) for start, length in self._pinned.items()]
        if not any(start <= address and address + size <= end for address in (target, source) for start, end in ranges):
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        self.copied_bytes += size
        self.work(lambda: ctypes.memmove(target, source, size) and None)
        return (CUresult.CUDA_SUCCESS,)

    cuMemcpyDtoHAsync = cuMemcpyHtoDAsync

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[CUresult]:
        self.capturing = []
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamEndCapture(self, stream: int) -> tuple[CUresult, int]:
        number, invalid = next(self._numbers), self.invalidated
        self._graphs[number], self.capturing, self.invalidated = self.capturing or [], None, False
        if invalid:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 0
        return CUresult.CUDA_SUCCESS, number

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[CUresult, int]:
        return CUresult.CUDA_SUCCESS, graph

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[CUresult]:
        for step in self._graphs[graph]:
            step()
        return (CUresult.CUDA_SUCCESS,)


def install() -> None:
    """Have this process import the stand-ins as `cuda.bindings.driver` and `tensorrt`."""
    driver, bindings = Driver(), ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    found = {"cuda": ModuleType("cuda"), "cuda.bindings": bindings, "tensorrt": Runtime(driver)}
    sys.modules.update(found)  # type: ignore[arg-type]


class Runtime:
    """What `serving.plan_engine` calls of the module tensorrt, for a plan whose profile ends at `largest` images."""

    __version__ = "simulated"

    class ILogger:
        ERROR, WARNING = range(2)

    def __init__(self, driver: Driver, largest: int = 32) -> None:
        self._driver, self._largest = driver, largest
        self.sizes: list[int] = []  # of the batches that were run

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: Plan(self, plan) if plan else None)


class Plan:
    """A plan, and its one execution context."""

    def __init__(self, runtime: Runtime, model: bytes) -> None:
        self._runtime, self._driver = runtime, runtime._driver
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (images,), (probabilities,) = self._session.get_inputs(), self._session.get_outputs()
        self._image, self._classes = images.shape[1:], probabilities.shape[1]
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def create_execution_context(self) -> "Plan":
        return self

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(batch, *self._image) for batch in (1, self._runtime._largest, self._runtime._largest)]

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return -1, self._classes

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return 1 <= shape[0] <= self._runtime._largest

    def execute_async_v3(self, stream: int) -> bool:
        shape = self._shape
        self._driver.work(lambda: self._run(shape))
        return True

    def _run(self, shape: tuple[int, ...]) -> None:
        self._runtime.sizes.append(shape[0])
        images = _view(self._addresses["images"], shape, np.uint8)
        answers = _view(self._addresses["probabilities"], (shape[0], self._classes), np.float32)
        answers[:] = self._session.run(None, {"images": images})[0]


def _view(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, (ctypes.c_ubyte * size).from_address(address))
