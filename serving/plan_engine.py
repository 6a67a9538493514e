"""The network on a GPU, in Python: a plan in TensorRT's own runtime, for the variant `gpu-python` of `alexnet`.

Each engine has a stream, page-locked buffers, and a CUDA graph for each of `GRAPH_SIZES`. The official image's TensorRT
backend does the same without Python, and is the faster way. CUDA's driver interface, through cuda-bindings, comes with
every driver, whatever version of CUDA is installed (docs.nvidia.com/cuda/cuda-driver-api). On a GPU: not run: no GPU.
"""

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.common.provenance import gpu_names
from alexnet_triton.serving.engine import BatchEngine, Engine, EngineConfig
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


def bus_address(cuda: Any = None) -> str:
    """Where CUDA's first GPU is on the bus, as 0000:17:00.0: NVML does not number GPUs as CUDA does.

    Raises:
        EngineError, ImportError: there is no GPU, or cuda-bindings is not installed.
    """
    cuda = cuda or _load_cuda()
    return _call(cuda, "cuDeviceGetPCIBusId", 32, _call(cuda, "cuDeviceGet", 0)).split(b"\0")[0].decode()


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
        """What `work` puts into the stream as a graph; returns what launches it, once a call.

        Meanwhile nothing may wait for the stream or allocate memory.
        """
        self._call(
            "cuStreamBeginCapture", self.stream, self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        )
        try:
            work()
        except BaseException:
            with suppress(EngineError):  # the capture is invalid, which is not the reason
                self._call("cuStreamEndCapture", self.stream)
            raise
        executable = self._call("cuGraphInstantiate", self._call("cuStreamEndCapture", self.stream), 0)
        return lambda: self._call("cuGraphLaunch", executable, self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        return _call(self._cuda, name, *arguments)


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
        raise EngineError(
            f"TensorRT {trt.__version__} cannot load the plan: {reason}; build it again on this machine, and hide "
            "GPUs of another kind with CUDA_VISIBLE_DEVICES"
        )
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
