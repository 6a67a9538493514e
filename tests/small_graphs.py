"""ONNX graphs of a few nodes, for what does not depend on the network."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def small_graph(
    path: Path, nodes: list[onnx.NodeProto] | None = None, batch: int | str = "N", inputs: tuple[str, ...] = ()
) -> Path:
    """images uint8 [N, 4, 4, 3] to probabilities [N, 3], or what `nodes` make of them."""
    average = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0),
        helper.make_node("Softmax", ["means"], ["probabilities"], axis=1),
    ]
    values = [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 4, 4, 3])]
    values += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in inputs]
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    graph = helper.make_graph(nodes or average, "small", values, [output], [axes])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path
