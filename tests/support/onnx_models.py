"""Small ONNX models for tests."""

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

__all__ = ["ELEMENT_TYPES", "Shape", "identity", "model", "tensor"]

Shape = Sequence[int | str | None]

ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
"""The ONNX element type of each datatype."""


def tensor(name: str, datatype: str, shape: Shape | None) -> onnx.ValueInfoProto:
    """A declared input or output; `shape` None leaves even the rank open."""
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[datatype], shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A model of opset 13 and IR version 8, which every reader of these tests knows."""
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def identity(datatype: str = "FP32", shape: Shape = ("N",)) -> onnx.ModelProto:
    """One input `x`, given back as `y`."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], [tensor("x", datatype, shape)], [tensor("y", datatype, shape)])
