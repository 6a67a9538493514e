"""TensorRT's Python interface, as 10.12 to 11.x and TensorRT-RTX share it: ONNX to a plan, and a plan to an engine.

Networks are strongly typed, which 11 no longer lets one choose: precision is what the graph says, and
neither BuilderFlag.FP16 and INT8 nor calibrators, which 11 removed, are used. Source: TensorRT's
"Migrating from TensorRT 10.x to 11.x" and its Python bindings at v10.12.0 and v11.1.
"""

import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import ExportError, ModelError
from export.onnx_file import first_line

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
