"""TensorRT: ONNX to a plan, and a plan as a runner on the GPU.

The Python interface as TensorRT 10.12 to 11.x and TensorRT-RTX share it. Networks are strongly typed: the graph
decides the precision. TensorRT 11 removed BuilderFlag.FP16, BuilderFlag.INT8 and the calibrators; none is used here.
Source: TensorRT's "Migrating from TensorRT 10.x to 11.x", and its Python bindings at v10.12.0 and v11.1.
"""

import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_triton.export.errors import ExportError, ModelError
from alexnet_triton.export.numerics import Runner
from alexnet_triton.export.onnx_file import INPUT, OUTPUT, first_line
from alexnet_triton.serving.plan_engine import Device, collecting_logger, deserialize

FIRST, BEYOND = (10, 12), (12, 0)
NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
NO_GPU = "not run: no GPU"


@dataclass(frozen=True)
class PlanConfig:
    """How a plan is built."""

    opt_batch: int = 32  # the batch size that kernels are chosen for
    max_batch: int = 32
    builder_level: int = 3  # 0 to 5: the higher, the longer the search for kernels
    workspace_mib: int = 1024
    version_compatible: bool = False  # the plan runs in later TensorRT versions too


@dataclass(frozen=True)
class BuiltPlan:
    """A plan and what the builder says of it."""

    plan: bytes
    signature: dict[str, Any]
    timing_cache: bytes
    timing_cache_state: str  # new, reused, or why the one given was not


def load(*, rtx: bool = False) -> Any:
    """The module tensorrt, or tensorrt_rtx, which builds without a GPU.

    Raises:
        ExportError: it is not installed, or its version has another interface.
    """
    name = "tensorrt_rtx" if rtx else "tensorrt"
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        install = f"pip install 'alexnet-triton[{'rtx' if rtx else 'gpu'}]'"
        raise ExportError(f"{name} is not installed: {install} ({first_line(error)})") from error
    version = tuple(int(part) for part in module.__version__.split(".")[:2])
    if not rtx and not FIRST <= version < BEYOND:
        raise ExportError(f"tensorrt {module.__version__}: 10.12 to 11.x is needed; pip install 'alexnet-triton[gpu]'")
    return module


def build(trt: Any, model: Path, config: PlanConfig, timing_cache: bytes | None) -> BuiltPlan:
    """Parse an ONNX file and build a plan; `timing_cache` is that of an earlier build.

    Raises:
        ModelError: TensorRT does not take the model.
        ExportError: it cannot be built on this machine.
    """
    log = collecting_logger(trt)
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
    return BuiltPlan(bytes(plan), {**_tensors(network), "profile": profile}, cache, state)


def _parse(trt: Any, network: Any, model: Path, log: Any) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(model)):
        return
    error = parser.get_error(0)
    node = " ".join(filter(None, (error.node_operator(), error.node_name()))) or "the file"
    reason = first_line(error.desc().replace(f"Invalid Node - {error.node_name()}", ""))
    raise ModelError(f"{model}: {NAMES[trt.__name__]} does not take {node}: {reason}; write it with other operators")


def _settings(trt: Any, builder: Any, config: PlanConfig) -> Any:
    settings = builder.create_builder_config()
    settings.builder_optimization_level = config.builder_level
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib * 2**20)
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if config.version_compatible and trt.__name__ == "tensorrt":  # TensorRT-RTX has no such flag
        settings.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    return settings


def _add_profile(builder: Any, settings: Any, images: Any, config: PlanConfig) -> dict[str, list[int]]:
    """Batches from 1 to the largest, or the fixed batch of the graph alone."""
    shape = tuple(images.shape)
    batches = (1, config.opt_batch, config.max_batch) if shape[0] == -1 else (shape[0],) * 3
    minimum, optimum, maximum = ((batch, *shape[1:]) for batch in batches)
    profile = builder.create_optimization_profile()
    profile.set_shape(images.name, minimum, optimum, maximum)
    settings.add_optimization_profile(profile)
    return {"min": list(minimum), "opt": list(optimum), "max": list(maximum)}


def _set_timing_cache(settings: Any, earlier: bytes | None, log: Any) -> str:
    said = len(log.messages)
    cache = settings.create_timing_cache(earlier or b"")
    taken = cache is not None and settings.set_timing_cache(cache, False)
    refusals = [message for message in log.messages[said:] if "timing cache" in message.lower()]
    if earlier is None:
        return "new"
    if taken and not refusals:
        return "reused"
    if not taken:
        settings.set_timing_cache(settings.create_timing_cache(b""), False)
    return f"started anew: {first_line((refusals or ['made by another version or GPU'])[-1])}"


def _tensors(network: Any) -> dict[str, Any]:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {
        key: [{"name": tensor.name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)} for tensor in tensors]
        for key, tensors in (("inputs", inputs), ("outputs", outputs))
    }


def signature(trt: Any, engine: Any) -> dict[str, Any]:
    """Tensors and first profile of an engine, as `BuiltPlan.signature` gives those of a network."""
    found: dict[str, Any] = {"inputs": [], "outputs": []}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        dtype, shape = engine.get_tensor_dtype(name).name, list(engine.get_tensor_shape(name))
        kind = "inputs" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "outputs"
        found[kind].append({"name": name, "dtype": dtype, "shape": shape})
    shapes = map(list, engine.get_tensor_profile_shape(found["inputs"][0]["name"], 0))
    return {**found, "profile": dict(zip(("min", "opt", "max"), shapes, strict=True))}


def layers(trt: Any, engine: Any) -> str:
    """The engine inspector's description of an engine, as JSON; its fields differ between TensorRT 10 and 11."""
    return engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


def plan_runner(plan: Path, *, host_code: bool = False) -> Runner:
    """A plan in a file as a runner; `host_code` is that of `deserialize`.

    Raises:
        ExportError, EngineError: there is no TensorRT or no GPU here, or they cannot load the plan.
    """
    try:
        data = plan.read_bytes()
    except OSError as error:
        raise ExportError(f"{plan}: {error.strerror}; build it: alexnet-triton build-engine") from error
    trt, device = load(), Device()
    return engine_runner(deserialize(trt, data, host_code=host_code), device)


def engine_runner(engine: Any, device: Device) -> Runner:
    """A loaded engine as a runner; it splits what exceeds the largest batch of its profile."""
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
            raise ExportError("TensorRT: the plan did not run; see what nvidia-smi says")
        device.read(target, probabilities)
    return probabilities
