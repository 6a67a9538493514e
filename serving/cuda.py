"""CUDA's driver interface through cuda-bindings: the GPU, its memory, a stream, and graphs of what runs on it.

It comes with every driver, whatever version of CUDA is installed. Source: CUDA Driver API reference,
docs.nvidia.com/cuda/cuda-driver-api. On a GPU: not run: no GPU.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexnet_triton.common.provenance import gpu_names
from alexnet_triton.serving.errors import EngineError


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine."""

    name: str
    compute_capability: str  # as 9.0
    memory_mib: int
    driver: str  # the newest CUDA version that the driver knows, as 12.8


def has_gpu() -> bool:
    """Whether CUDA finds a GPU; without the package cuda-bindings, whether NVIDIA's driver lists one."""
    try:
        cuda = _load_cuda()
    except ImportError:
        return bool(gpu_names())
    except EngineError:
        return False
    return _call(cuda, "cuDeviceGetCount") > 0


def _load_cuda() -> Any:
    """The driver's interface, initialized."""
    from cuda.bindings import driver  # of the extra gpu

    _call(driver, "cuInit", 0)
    return driver


def _call(cuda: Any, name: str, *arguments: Any) -> Any:
    """The value of a driver's function, which is None for one that only has a status."""
    try:
        status, *value = getattr(cuda, name)(*arguments)
    except RuntimeError as error:
        raise EngineError("no GPU here: NVIDIA's driver is not installed") from error
    if status != cuda.CUresult.CUDA_SUCCESS:
        raise EngineError(f"CUDA: {name} failed with {status.name}; see what nvidia-smi says")
    return value[0] if value else None


class Device:
    """Memory and a stream on a GPU, in the context that TensorRT uses too. Not for several threads at once."""

    def __init__(self, number: int = 0, cuda: Any = None) -> None:
        """The GPU of this number among those that the process may use; `cuda` is the driver's interface.

        Raises:
            EngineError: there is no GPU, cuda-bindings is not installed, or the driver refuses a call.
        """
        try:
            self._cuda = cuda or _load_cuda()
        except ImportError as error:
            raise EngineError("cuda-bindings is not installed: pip install 'alexnet-triton[gpu]'") from error
        self._device = self._call("cuDeviceGet", number)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", self._device))
        # Flags 0: the stream waits for the copies of `array` and `read`, which go over the default stream.
        self.stream = int(self._call("cuStreamCreate", 0))

    def describe(self) -> Gpu:
        """Name, compute capability, memory and driver."""
        prefix = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY"
        attributes = [getattr(self._cuda.CUdevice_attribute, f"{prefix}_{part}") for part in ("MAJOR", "MINOR")]
        major, minor = (self._call("cuDeviceGetAttribute", attribute, self._device) for attribute in attributes)
        name = self._call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode()
        memory, driver = self._call("cuDeviceTotalMem", self._device), self._call("cuDriverGetVersion")
        return Gpu(name, f"{major}.{minor}", memory // 2**20, f"{driver // 1000}.{driver % 1000 // 10}")

    # ---- copies that are waited for

    @contextmanager
    def array(self, like: np.ndarray) -> Iterator[int]:
        """Address of a copy of `like` on the GPU, freed at the end."""
        source = np.ascontiguousarray(like)
        pointer = self._call("cuMemAlloc", max(source.nbytes, 1))
        try:
            self._call("cuMemcpyHtoD", pointer, source.ctypes.data, source.nbytes)
            yield int(pointer)
        finally:
            self._call("cuMemFree", pointer)

    def read(self, address: int, into: np.ndarray) -> None:
        """Wait for the stream and copy from the GPU into a contiguous array."""
        self.synchronize()
        self._call("cuMemcpyDtoH", into.ctypes.data, address, into.nbytes)

    # ---- buffers for as long as the process lives, and work in the stream's order

    def pinned(self, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        """An array in page-locked memory of the host, from which and to which copies need no other."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = int(self._call("cuMemHostAlloc", count, 0))
        memory = (ctypes.c_ubyte * count).from_address(address)
        return np.ndarray(shape, dtype, memoryview(memory))

    def allocate(self, size_bytes: int) -> int:
        """Address of memory on the GPU."""
        return int(self._call("cuMemAlloc", size_bytes))

    def copy_in(self, address: int, source: np.ndarray) -> None:
        """Begin to copy a contiguous array to the GPU."""
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self.stream)

    def copy_out(self, target: np.ndarray, address: int) -> None:
        """Begin to copy from the GPU into a contiguous array."""
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait for all work in the stream."""
        self._call("cuStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], object]) -> Callable[[], None]:
        """What `work` puts into the stream as a graph; returns what launches it, once a call."""
        self._call(
            "cuStreamBeginCapture", self.stream, self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        )
        try:
            work()
        finally:
            graph = self._call("cuStreamEndCapture", self.stream)
        executable = self._call("cuGraphInstantiate", graph, 0)
        return lambda: self._call("cuGraphLaunch", executable, self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        return _call(self._cuda, name, *arguments)
