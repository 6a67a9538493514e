"""What Triton's TensorRT backend accepts of a configuration and a plan, as rules in Python.

Sources: triton-inference-server/tensorrt_backend at e2ef6d7 (2026-07-17) and triton-inference-server/core at 73aad7c
(2026-06-09), the newest before release 26.09. Each rule names its function there, in the backend's instance_state.cc
where no file is named. The backend itself does not run without a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

WILDCARD = -1
# tensorrt_utils.cc:35, ConvertTrtTypeToDataType: TensorRT's name -> the configuration's.
DATA_TYPES = {
    "FLOAT": "TYPE_FP32",
    "HALF": "TYPE_FP16",
    "BF16": "TYPE_BF16",
    "INT8": "TYPE_INT8",
    "UINT8": "TYPE_UINT8",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "BOOL": "TYPE_BOOL",
}
ALLOCATION_STRATEGIES = ("STATIC", "ON_PROFILE_CHANGE")


@dataclass(frozen=True)
class Plan:
    """What the rules ask of a plan: name -> (TensorRT's dtype, shape), and the one profile of its input."""

    inputs: dict[str, tuple[str, list[int]]]
    outputs: dict[str, tuple[str, list[int]]]
    minimum: list[int]
    maximum: list[int]

    @classmethod
    def of(cls, sidecar: dict[str, Any]) -> "Plan":
        """From the description that `build-engine` writes beside a plan."""
        inputs, outputs = (
            {tensor["name"]: (tensor["dtype"], tensor["shape"]) for tensor in sidecar[side]}
            for side in ("inputs", "outputs")
        )
        return cls(inputs, outputs, sidecar["profile"]["min"], sidecar["profile"]["max"])


def faults(config: ModelConfig, plan: Plan) -> list[str]:
    """Why the backend would refuse this configuration, or not do what it says; empty where it takes it as it is."""
    rules = (_backend, _instances, _names, _tensors, _profile, _graphs, _graph_cover, _warm_ups, _parameters)
    return [fault for rule in rules for fault in rule(config, plan)]


def _backend(config: ModelConfig, plan: Plan) -> Iterator[str]:
    """AutoCompleteBackendFields, core's model_config_utils.cc: the platform names the backend and the file."""
    if config.platform != "tensorrt_plan" or config.backend not in ("", "tensorrt"):
        yield f"platform {config.platform!r} with backend {config.backend!r}"
    if config.default_model_filename not in ("", "model.plan"):
        yield f"default_model_filename {config.default_model_filename}"


def _instances(config: ModelConfig, plan: Plan) -> Iterator[str]:
    """The constructor of ModelInstanceState: GPUs only. InitOptimizationProfiles: a profile's name is its number."""
    for group in config.instance_group:
        if group.kind != ModelInstanceGroup.KIND_GPU:
            yield f"instances of {ModelInstanceGroup.Kind.Name(group.kind)}: the backend supports only GPUs"
        if [name for name in group.profile if name != "0"]:
            yield f"profile {', '.join(group.profile)}: the plan has profile 0"
    if not config.instance_group:
        yield "no instance_group"


def _names(config: ModelConfig, plan: Plan) -> Iterator[str]:
    """ValidateIO: no tensor that the plan has not. A plan does not run with an input that nobody fills."""
    for side, given, known in (("input", config.input, plan.inputs), ("output", config.output, plan.outputs)):
        names = {tensor.name for tensor in given}
        if names - known.keys():
            yield f"{side} {', '.join(sorted(names - known.keys()))} is not the plan's"
        if side == "input" and known.keys() - names:
            yield f"input {', '.join(sorted(known.keys() - names))} is not configured"


def _tensors(config: ModelConfig, plan: Plan) -> Iterator[str]:
    """InitializeExecuteInputBinding and InitializeExecuteOutputBinding: the same data type, and the same dimensions
    behind the batch, or from the first on without batching. ValidateIOHelper: marks that the plan has too: none."""
    for tensor in (*config.input, *config.output):
        dtype, shape = {**plan.inputs, **plan.outputs}.get(tensor.name, ("", []))
        expected = DATA_TYPES.get(dtype, "TYPE_INVALID")
        if dtype and DataType.Name(tensor.data_type) != expected:
            yield f"{tensor.name} is {DataType.Name(tensor.data_type)}, and {expected} in the plan"
        given = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
        given = [WILDCARD, *given] if config.max_batch_size else given
        if dtype and not _agree(shape, given):
            yield f"{tensor.name} has shape {given}, and {shape} in the plan"
        if tensor.is_shape_tensor or tensor.is_non_linear_format_io:
            yield f"{tensor.name} is marked as a shape tensor or non-linear"


def _agree(plan: list[int], given: list[int]) -> bool:
    """CompareDimsSupported, tensorrt_utils.cc, with compare_exact false."""
    return len(plan) == len(given) and all(
        WILDCARD in pair or pair[0] == pair[1] for pair in zip(plan, given, strict=True)
    )


def _profile(config: ModelConfig, plan: Plan) -> Iterator[str]:
    """ConfigureInputDimensions: dimensions within the profile. It prunes the batch to the profile's without a word, and
    a larger one that the queue forms fails when it runs: so the largest batch has to be in the profile."""
    for tensor in config.input:
        bounds = zip(tensor.dims, plan.minimum[1:], plan.maximum[1:], strict=False)
        if not all(dim == WILDCARD or low <= dim <= high for dim, low, high in bounds):
            yield f"{tensor.name} has dimensions {list(tensor.dims)} beyond the profile's"
    if not plan.minimum[0] <= 1 <= config.max_batch_size <= plan.maximum[0]:
        yield f"max_batch_size {config.max_batch_size} with a profile of {plan.minimum[0]} to {plan.maximum[0]} images"


def _graphs(config: ModelConfig, plan: Plan) -> Iterator[str]:
    """ValidateGraphSpec refuses the model; SetCudaGraphShape leaves out a graph whose shape the plan does not take."""
    for spec in config.optimization.cuda.graph_spec:
        name, lower = f"graph of {spec.batch_size}", _lower_bound(spec)
        if not 1 <= lower.batch_size <= spec.batch_size <= config.max_batch_size:
            yield f"{name}: batches {lower.batch_size} to {spec.batch_size}, of at most {config.max_batch_size}"
        if spec.input.keys() != plan.inputs.keys():
            yield f"{name}: shapes of {', '.join(spec.input) or 'nothing'}"
        for tensor, shape in spec.input.items():
            below = lower.input[tensor].dim if tensor in lower.input else []
            if len(below) != len(shape.dim) or any(
                not 0 <= low <= dim for low, dim in zip(below, shape.dim, strict=True)
            ):
                yield f"{name}: lower bound {list(below)} of {list(shape.dim)}"
            full = zip((spec.batch_size, *shape.dim), plan.minimum, plan.maximum, strict=False)
            if 1 + len(shape.dim) != len(plan.maximum) or any(not low <= dim <= high for dim, low, high in full):
                yield f"{name}: shape {list(shape.dim)} is not in the profile, so it is not captured"


def _lower_bound(spec: Any) -> Any:
    """InitializeGraphSpecs: a spec without one serves its own size and shapes alone."""
    return spec.graph_lower_bound if spec.HasField("graph_lower_bound") else spec


def _graph_cover(config: ModelConfig, plan: Plan) -> Iterator[str]:
    """FindClosestCudaGraph: a batch has a graph if one's bounds hold it; else it is launched layer by layer."""
    cuda = config.optimization.cuda
    if not cuda.graphs:
        yield "no CUDA graphs"
    covered = {size for spec in cuda.graph_spec for size in range(_lower_bound(spec).batch_size, spec.batch_size + 1)}
    missing = set(range(1, config.max_batch_size + 1)) - covered
    if missing:
        yield f"no graph for batches of {', '.join(map(str, sorted(missing)))}"


def _warm_ups(config: ModelConfig, plan: Plan) -> Iterator[str]:
    """GenerateWarmupData, core's backend_model_instance.cc: as many requests of one image as the batch, run as one."""
    for sample in config.model_warmup:
        if not 1 <= sample.batch_size <= config.max_batch_size:
            yield f"warm-up of {sample.batch_size}"
        given = {name: (tensor.data_type, list(tensor.dims)) for name, tensor in sample.inputs.items()}
        if given != {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in config.input}:
            yield f"warm-up of {sample.batch_size} with {given}"


def _parameters(config: ModelConfig, plan: Plan) -> Iterator[str]:
    """ParseParameters, model_state.cc: the only ones that it reads; multi-device wants KIND_MODEL."""
    strategy = config.parameters.get("execution_context_allocation_strategy")
    if strategy is not None and strategy.string_value not in ALLOCATION_STRATEGIES:
        yield f"execution_context_allocation_strategy {strategy.string_value}"
    if "enable_multi_device" in config.parameters:
        yield "enable_multi_device with instances of KIND_GPU"


def fields(message: Message, prefix: str = "") -> set[str]:
    """Paths of all fields that are set, without numbers: what a configuration asks for."""
    found: set[str] = set()
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            found.add(path)
        else:
            parts = value if field.is_repeated else [value]
            found |= {name for part in parts for name in fields(part, f"{path}.")} or {path}
    return found
