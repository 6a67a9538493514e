"""Changes to the inputs, outputs and batch of ONNX graphs that leave what the graphs compute."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

BATCH = "batch"
OWN = "adapted/"  # prefix of the names that this module adds
SCORES = f"{OWN}scores"
# Operators between an image and the Cast that makes it float: they take every type.
TYPELESS = {"Transpose", "Identity"}


@dataclass(frozen=True)
class ImageInput:
    """The image input of a graph."""

    name: str
    kind: int  # TensorProto.FLOAT, FLOAT16 or UINT8
    channels_first: bool
    size: int  # height and width
    batch: int | None  # None where it is free


def free_names(graph: GraphProto, names: Sequence[str]) -> None:
    """Rename, in place, every tensor that has one of these names or one that this module adds."""
    taken = _tensor_names(graph)
    prefix = "model/"
    while any(name.startswith(prefix) for name in taken):
        prefix += "model/"
    _rename(graph, {name: prefix + name for name in taken if name in names or name.startswith(OWN)})


def _tensor_names(graph: GraphProto) -> set[str]:
    names = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        names |= {*node.input, *node.output}
        for inner in _subgraphs(node):
            names |= _tensor_names(inner)
    return names


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in _subgraphs(node):
            _rename(inner, names)


def _subgraphs(node: NodeProto) -> list[GraphProto]:
    """The branches and bodies of If, Loop and Scan."""
    return [inner for entry in node.attribute for inner in (*([entry.g] if entry.HasField("g") else []), *entry.graphs)]


def take_images(
    model: onnx.ModelProto, image: ImageInput, name: str, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Replace a graph's input by uint8 `name` [N, S, S, 3]; (x - mean) / std follows in its own layout and type.

    The Cast to float comes before the Transpose, because TensorRT cannot transpose uint8.
    """
    graph = model.graph
    nodes = [helper.make_node("Cast", [name], [f"{OWN}float"], to=TensorProto.FLOAT)]
    for operator, values, neutral in (("Sub", mean, 0.0), ("Div", std, 1.0)):
        if any(value != neutral for value in values):
            last, constant = nodes[-1].output[0], f"{OWN}{operator.lower()}"
            tensor = numpy_helper.from_array(np.array(values, np.float32))
            nodes.append(helper.make_node("Constant", [], [constant], value=tensor))
            nodes.append(helper.make_node(operator, [last, constant], [f"{constant}ed"]))
    if image.channels_first:
        nodes.append(helper.make_node("Transpose", [nodes[-1].output[0]], [f"{OWN}planes"], perm=[0, 3, 1, 2]))
    if image.kind != TensorProto.FLOAT and not (image.kind == TensorProto.UINT8 and _is_cast_first(graph, image.name)):
        nodes.append(helper.make_node("Cast", [nodes[-1].output[0]], [f"{OWN}cast"], to=image.kind))
    nodes[-1].output[0] = image.name
    _replace(graph.node, [*nodes, *graph.node])
    taken = helper.make_tensor_value_info(name, TensorProto.UINT8, [BATCH, image.size, image.size, 3])
    _replace(graph.input, [taken, *(value for value in graph.input if value.name != image.name)])


def _is_cast_first(graph: GraphProto, name: str) -> bool:
    """Whether every reader of a tensor casts it, so that its type does not matter."""
    readers = [node for node in graph.node if name in node.input]
    return bool(readers) and all(
        node.op_type == "Cast" or (node.op_type in TYPELESS and _is_cast_first(graph, node.output[0]))
        for node in readers
    )


def _replace(repeated: Any, values: list[Any]) -> None:
    """Give a repeated field of a graph or node other values."""
    del repeated[:]
    repeated.extend(values)


def give_scores(model: onnx.ModelProto) -> None:
    """Replace a graph's one output by `SCORES`, float32 [N, classes]."""
    graph = model.graph
    output = graph.output[0]
    nodes = [helper.make_node("Flatten", [output.name], [f"{OWN}flat"], axis=1)]
    if len(output.type.tensor_type.shape.dim) == 2:
        nodes = []
    if output.type.tensor_type.elem_type != TensorProto.FLOAT or not nodes:
        source = nodes[-1].output[0] if nodes else output.name
        nodes.append(helper.make_node("Cast", [source], [f"{OWN}cast_scores"], to=TensorProto.FLOAT))
    nodes[-1].output[0] = SCORES
    graph.node.extend(nodes)
    _set_output(graph, SCORES, [BATCH, None])


def give_probabilities(model: onnx.ModelProto, name: str, classes: int, *, softmax: bool) -> None:
    """Replace a graph's output `SCORES` by `name`, float32 [N, classes]."""
    node = helper.make_node("Identity", [SCORES], [name])
    if softmax:
        node = helper.make_node("Softmax", [SCORES], [name], axis=1)
    model.graph.node.append(node)
    _set_output(model.graph, name, [BATCH, classes])


def _set_output(graph: GraphProto, name: str, shape: list[int | str | None]) -> None:
    _replace(graph.output, [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)])


def set_batch(model: onnx.ModelProto, batch: int | None) -> None:
    """Declare the batch of the graph's input and output, None for a free one, and remove the shapes inside."""
    del model.graph.value_info[:]
    for value in (model.graph.input[0], model.graph.output[0]):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        if batch is None:
            dim.dim_param = BATCH
        else:
            dim.dim_value = batch


def free_reshapes(model: onnx.ModelProto, batch: int) -> None:
    """Let every Reshape to a constant [batch, ...] keep the first dimension of its input instead.

    Only a run of the graph can tell whether that dimension is the batch.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    reshapes = [node for node in graph.node if node.op_type == "Reshape" and node.input[1] in constants]
    for node in reshapes:
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.size > 1 and shape[0] == batch and 0 not in shape:
            shape[0] = 0
            constants[node.input[1]].CopyFrom(numpy_helper.from_array(shape, constants[node.input[1]].name))
        if shape.size > 1 and shape[0] == 0:  # 0 means: keep this dimension, unless allowzero is set
            _replace(node.attribute, [each for each in node.attribute if each.name != "allowzero"])
