"""The little of CUDA's driver API that the export needs: which GPU there is, and memory on it.

The driver comes with every GPU, while the runtime's Python packages differ between machines and containers.
Source: CUDA Driver API reference, docs.nvidia.com/cuda/cuda-driver-api.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.errors import ExportError

LIBRARY = "libcuda.so.1"
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """The first GPU of this machine."""

    name: str
    compute_capability: str  # as 9.0
    memory_mib: int
    driver: str  # the newest CUDA version that the driver knows, as 12.8


def find_gpu() -> Gpu | None:
    """The first GPU, or None where there is none or no driver."""
    try:
        library = _initialized()
        count = _integer(library.cuDeviceGetCount)
    except (OSError, ExportError):
        return None
    return _describe(library) if count else None


def _initialized() -> Any:
    library = ctypes.CDLL(LIBRARY)
    _check(library, library.cuInit(0))
    return library


def _describe(library: Any) -> Gpu:
    device = _device(library)
    name, memory = ctypes.create_string_buffer(NAME_BYTES), ctypes.c_size_t()
    _check(library, library.cuDeviceGetName(name, NAME_BYTES, device))
    _check(library, library.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    major = _integer(library.cuDeviceGetAttribute, COMPUTE_CAPABILITY_MAJOR, device)
    minor = _integer(library.cuDeviceGetAttribute, COMPUTE_CAPABILITY_MINOR, device)
    driver = _integer(library.cuDriverGetVersion)  # 12080 is 12.8
    version = f"{driver // 1000}.{driver % 1000 // 10}"
    return Gpu(name.value.decode(), f"{major}.{minor}", memory.value // 2**20, version)


def _device(library: Any) -> ctypes.c_int:
    device = ctypes.c_int()
    _check(library, library.cuDeviceGet(ctypes.byref(device), 0))
    return device


def _integer(function: Any, *arguments: Any) -> int:
    value = ctypes.c_int()
    status = function(ctypes.byref(value), *arguments)
    if status:
        raise ExportError(f"CUDA: {function.__name__} failed with error {status}; look at nvidia-smi")
    return value.value


def _check(library: Any, status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(text))
        raise ExportError(f"CUDA: {(text.value or b'unknown error').decode()} ({status}); look at nvidia-smi")


class Device:
    """Memory and a stream on the first GPU, in the context that TensorRT uses too.

    Raises:
        ExportError: there is no GPU, or the driver refuses a call.
    """

    def __init__(self) -> None:
        try:
            self._cuda = _initialized()
        except OSError as error:
            raise ExportError("no GPU here: the NVIDIA driver is not installed") from error
        context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), _device(self._cuda))
        self._call("cuCtxSetCurrent", context)
        # Flags 0: the stream waits for the copies, which go over the default stream.
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream: int = stream.value or 0

    @contextmanager
    def array(self, like: np.ndarray) -> Iterator[int]:
        """Address of a copy of `like` on the GPU, freed at the end."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(like.nbytes, 1)))
        try:
            source = np.ascontiguousarray(like)
            self._call("cuMemcpyHtoD_v2", address, _pointer(source), ctypes.c_size_t(source.nbytes))
            yield address.value
        finally:
            self._call("cuMemFree_v2", address)

    def read(self, address: int, into: np.ndarray) -> None:
        """Wait for the stream and copy from the GPU into a contiguous array."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.stream))
        self._call("cuMemcpyDtoH_v2", _pointer(into), ctypes.c_uint64(address), ctypes.c_size_t(into.nbytes))

    def _call(self, name: str, *arguments: Any) -> None:
        _check(self._cuda, getattr(self._cuda, name)(*arguments))


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
