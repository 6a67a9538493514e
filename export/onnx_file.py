"""ONNX files: read and checked, written in one step, and what their inputs and metadata say."""

import json
from pathlib import Path

import onnx

from alexnet_triton.common.files import write_bytes
from alexnet_triton.export.errors import ModelError

INPUT, OUTPUT = "images", "probabilities"
WEIGHTED = ("Conv", "Gemm", "MatMul")


def read(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Raises:
        ModelError: it is missing, truncated or not valid.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such model; export one with alexnet-triton to-onnx")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors share no base class
        raise ModelError(f"{path}: damaged or not valid ONNX: {first_line(error)}; export it again") from error
    return model


def write(model: onnx.ModelProto, path: Path) -> None:
    """Replace a file by a model in one step; the same model gives the same bytes.

    Raises:
        WriteError: it cannot be written.
    """
    write_bytes(path, model.SerializeToString(deterministic=True))


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    """The properties that a model carries."""
    return {entry.key: entry.value for entry in model.metadata_props}


def classes(model: onnx.ModelProto) -> tuple[str, ...]:
    """The labels that a model carries, in the order of its output; empty where it carries none."""
    return tuple(json.loads(metadata(model).get("classes", "[]")))


def image_input(model: onnx.ModelProto, name: object) -> onnx.ValueInfoProto:
    """The one input that is not a weight; `name` is what an error calls the model.

    Raises:
        ModelError: there are several, or none.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        named = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(f"{name}: {len(inputs)} inputs ({named}) where one image is expected; export it with one")
    return inputs[0]


def dims(value: onnx.ValueInfoProto) -> list[int | None]:
    """Dimensions of a tensor, None for a free one; empty where the shape is not given."""
    shape = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.dim_value > 0 else None for dim in shape]  # some exporters write -1 for a free one


def precision(model: onnx.ModelProto) -> str:
    """What the graph computes its convolutions and products in: fp32, fp16 or int8."""
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return "int8"
    halves = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    weighted = [node for node in model.graph.node if node.op_type in WEIGHTED]
    return "fp16" if any(halves.intersection(node.input) for node in weighted) else "fp32"


def check_signature(model: onnx.ModelProto, name: object) -> tuple[int | None, int]:
    """Demand what this project serves: uint8 `images` [N, S, S, 3] to `probabilities`.

    Returns:
        N, None where it is free, and S.

    Raises:
        ModelError: the model has another signature.
    """
    images, outputs = image_input(model, name), [value.name for value in model.graph.output]
    shape, kind = dims(images), images.type.tensor_type.elem_type
    fits = len(shape) == 4 and shape[1] is not None and shape[1] == shape[2] and shape[3] == 3
    if not fits or (images.name, kind, outputs) != (INPUT, onnx.TensorProto.UINT8, [OUTPUT]):
        has = f"{images.name} {onnx.TensorProto.DataType.Name(kind)} {shape} -> {', '.join(outputs)}"
        raise ModelError(
            f"{name}: has {has}, not images UINT8 [N, S, S, 3] -> probabilities; publish it with "
            "alexnet-triton publish --onnx, which writes a model.onnx of that form"
        )
    return shape[0], int(shape[1] or 0)


def first_line(error: object) -> str:
    """The first line of a message that is not empty, without a full stop at its end."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__).rstrip(".")
