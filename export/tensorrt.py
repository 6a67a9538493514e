"""A TensorRT plan as a runner: uint8 images [N, S, S, 3] to float32 probabilities [N, classes], on the GPU."""

import ctypes
import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.export.errors import ExportError, ModelError
from alexnet_triton.export.numerics import Runner
from alexnet_triton.export.onnx_file import INPUT, OUTPUT, first_line

# WAS alexnet_triton.export.tensorrt: The little of CUDA's driver API that the export needs: which GPU there is, and memory on it.
#
# The driver comes with every GPU, while the runtime's Python packages differ between machines and containers.
# Source: CUDA Driver API reference, docs.nvidia.com/cuda/cuda-driver-api.
#


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


# WAS alexnet_triton.export.tensorrt: TensorRT's Python interface, as 10.12 to 11.x and TensorRT-RTX share it: ONNX to a plan, and a plan to an engine.
#
# Networks are strongly typed, which 11 no longer lets one choose: precision is what the graph says, and
# neither BuilderFlag.FP16 and INT8 nor calibrators, which 11 removed, are used. Source: TensorRT's
# "Migrating from TensorRT 10.x to 11.x" and its Python bindings at v10.12.0 and v11.1.
#


FIRST, BEYOND = (10, 12), (12, 0)
NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class EngineConfig:
    """How a plan is built."""

    opt_batch: int = 32  # the batch size that kernels are chosen for
    max_batch: int = 32
    builder_level: int = 3  # 0 to 5: the higher, the longer the search for kernels
    workspace_mib: int = 1024
    version_compatible: bool = False  # the plan runs in later TensorRT versions too
    hardware_compatible: str = "none"  # or ampere_plus, same_compute_capability: the plan runs on such GPUs too

    def __post_init__(self) -> None:
        if not 1 <= self.opt_batch <= self.max_batch:
            raise ExportError(f"--opt {self.opt_batch} --max {self.max_batch}: give 1 <= opt <= max")
        if self.workspace_mib < 1:
            raise ExportError(f"--workspace {self.workspace_mib}: give 1 MiB or more")


@dataclass(frozen=True)
class Built:
    """A plan and what the builder says of it."""

    plan: bytes
    signature: dict[str, Any]
    timing_cache: bytes
    timing_cache_state: str  # new, reused, or why a kept one was not


def load(*, rtx: bool = False) -> Any:
    """The module tensorrt, or tensorrt_rtx, which builds without a GPU.

    Raises:
        ExportError: it is not installed, or of a version with another interface.
    """
    name = "tensorrt_rtx" if rtx else "tensorrt"
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        extra = "rtx" if rtx else "gpu"
        raise ExportError(f"{name} is not installed: pip install -e '.[{extra}]' ({first_line(error)})") from error
    version = tuple(int(part) for part in module.__version__.split(".")[:2])
    if not rtx and not FIRST <= version < BEYOND:
        raise ExportError(f"tensorrt {module.__version__}: 10.12 to 11.x is needed; pip install -e '.[gpu]'")
    return module


def build(trt: Any, model: Path, config: EngineConfig, timing_cache: bytes | None) -> Built:
    """Parse an ONNX file and build a plan; `timing_cache` is what an earlier build has kept.

    Raises:
        ModelError: TensorRT does not take the model.
        ExportError: it cannot be built on this machine.
    """
    log = _logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, model, log)
    settings = _settings(trt, builder, config)
    profile = _add_profile(builder, settings, network.get_input(0), config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TensorRT-RTX takes timing caches and ignores them
        state = _set_timing_cache(settings, timing_cache, log)
        said = len(log.messages)
        plan = builder.build_serialized_network(network, settings)
        if plan is None:
            reason = first_line(next(iter(log.messages[said:]), "it gives no reason"))
            raise ExportError(f"{model}: {NAMES[trt.__name__]} cannot build it: {reason}")
        cache = bytes(settings.get_timing_cache().serialize())
    return Built(bytes(plan), {**_tensors(network), "profile": profile}, cache, state)


def _logger(trt: Any) -> Any:
    """Keeps warnings and errors: the builder's functions return None and say why here."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.messages.append(message)

    return Logger()


def _parse(trt: Any, network: Any, model: Path, log: Any) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(model)):
        return
    error = parser.get_error(0)
    node = " ".join(filter(None, (error.node_operator(), error.node_name()))) or "the file"
    reason = first_line(error.desc().replace(f"Invalid Node - {error.node_name()}", ""))
    raise ModelError(f"{model}: {NAMES[trt.__name__]} does not take {node}: {reason}; write it with other operators")


def _settings(trt: Any, builder: Any, config: EngineConfig) -> Any:
    settings = builder.create_builder_config()
    settings.builder_optimization_level = config.builder_level
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib * 2**20)
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if trt.__name__ == "tensorrt":  # TensorRT-RTX has neither kind of compatibility
        if config.version_compatible:
            settings.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        level = getattr(trt.HardwareCompatibilityLevel, config.hardware_compatible.upper())
        settings.hardware_compatibility_level = level
    return settings


def _add_profile(builder: Any, settings: Any, images: Any, config: EngineConfig) -> dict[str, list[int]]:
    """Batches from 1 to the largest; a graph of a fixed batch keeps it."""
    shape = tuple(images.shape)
    batches = (1, config.opt_batch, config.max_batch) if shape[0] == -1 else (shape[0],) * 3
    minimum, optimum, maximum = ((batch, *shape[1:]) for batch in batches)
    profile = builder.create_optimization_profile()
    profile.set_shape(images.name, minimum, optimum, maximum)
    settings.add_optimization_profile(profile)
    return {"min": list(minimum), "opt": list(optimum), "max": list(maximum)}


def _set_timing_cache(settings: Any, kept: bytes | None, log: Any) -> str:
    said = len(log.messages)
    cache = settings.create_timing_cache(kept or b"")
    taken = cache is not None and settings.set_timing_cache(cache, False)
    refusals = [message for message in log.messages[said:] if "timing cache" in message.lower()]
    if kept is None:
        return "new"
    if taken and not refusals:
        return "reused"
    if not taken:
        settings.set_timing_cache(settings.create_timing_cache(b""), False)
    return f"started anew: {first_line((refusals or ['made by another version or GPU'])[-1])}"


def _tensors(network: Any) -> dict[str, Any]:
    def describe(tensor: Any) -> dict[str, Any]:
        return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}

    return {
        "inputs": [describe(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [describe(network.get_output(i)) for i in range(network.num_outputs)],
    }


def deserialize(trt: Any, plan: bytes, *, host_code: bool) -> Any:
    """A plan as an engine on the GPU. `host_code` lets a version-compatible plan run the code that it brings.

    Raises:
        ExportError: this TensorRT or this GPU does not take it.
    """
    log = _logger(trt)
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = first_line(next(iter(log.messages), "it gives no reason"))
        raise ExportError(f"TensorRT {trt.__version__} cannot load the plan: {reason}; build it anew on this machine")
    return engine


def signature(trt: Any, engine: Any) -> dict[str, Any]:
    """Tensors and first profile of an engine, as `Built.signature` gives those of a network."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    tensors = {
        mode: [
            {"name": n, "dtype": engine.get_tensor_dtype(n).name, "shape": list(engine.get_tensor_shape(n))}
            for n in names
            if engine.get_tensor_mode(n) == getattr(trt.TensorIOMode, mode)
        ]
        for mode in ("INPUT", "OUTPUT")
    }
    shapes = [list(shape) for shape in engine.get_tensor_profile_shape(tensors["INPUT"][0]["name"], 0)]
    profile = dict(zip(("min", "opt", "max"), shapes, strict=True))
    return {"inputs": tensors["INPUT"], "outputs": tensors["OUTPUT"], "profile": profile}


def layers(trt: Any, engine: Any) -> str:
    """What the engine inspector says of an engine, as JSON; its fields are not the same in 10 and 11."""
    return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


def plan_runner(plan: Path, *, host_code: bool = False) -> Runner:
    """A plan that lies in a file; `host_code` lets a version-compatible one run the code that it brings.

    Raises:
        ExportError: there is no TensorRT or no GPU here, or the plan is none of theirs.
    """
    try:
        data = plan.read_bytes()
    except OSError as error:
        raise ExportError(
            f"{plan}: {error.strerror}; build it: python -m alexnet_triton.export.build_engine"
        ) from error
    trt = load()
    device = Device()
    return engine_runner(deserialize(trt, data, host_code=host_code), device)


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
