"""Small ONNX models for tests."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["ELEMENT_TYPES", "Shape", "counting", "growing", "identity", "many_outputs", "model", "tensor"]

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


def many_outputs(count: int) -> onnx.ModelProto:
    """One input `x` [N]; output `out_i`, for i falling from count - 1 to 0, is x + i."""
    names = [f"out_{i}" for i in reversed(range(count))]
    constants = [numpy_helper.from_array(np.array([float(name[4:])], dtype=np.float32), f"c_{name}") for name in names]
    nodes = [helper.make_node("Add", ["x", f"c_{name}"], [name]) for name in names]
    return model(nodes, [tensor("x", "FP32", ["N"])], [tensor(name, "FP32", ["N"]) for name in names], constants)


def growing() -> onnx.ModelProto:
    """One input `x` [1]; the output `y` is as many zeros as it says."""
    nodes = [
        helper.make_node("Cast", ["x"], ["count"], to=TensorProto.INT64),
        helper.make_node("ConstantOfShape", ["count"], ["y"]),
    ]
    return model(nodes, [tensor("x", "FP32", [1])], [tensor("y", "FP32", ["N"])])


def counting(trips: int) -> onnx.ModelProto:
    """One input `x` [N], to which a loop adds 1 `trips` times; the output is `y`. About 10⁶ trips take a second."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Add", ["value", "one"], ["sum"])],
        "body",
        [tensor("i", "INT64", []), tensor("go_in", "BOOL", []), tensor("value", "FP32", ["N"])],
        [tensor("go_out", "BOOL", []), tensor("sum", "FP32", ["N"])],
    )
    constants = [
        numpy_helper.from_array(np.array(trips, dtype=np.int64), "trips"),
        numpy_helper.from_array(np.array(True), "go"),
        numpy_helper.from_array(np.array([1], dtype=np.float32), "one"),
    ]
    loop = helper.make_node("Loop", ["trips", "go", "x"], ["y"], body=body)
    return model([loop], [tensor("x", "FP32", ["N"])], [tensor("y", "FP32", ["N"])], constants)
