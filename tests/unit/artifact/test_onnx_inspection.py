import asyncio
import os
import pickle
from collections.abc import AsyncIterator, Callable

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from inferplane.server.artifact.onnx_inspection import inspect_onnx
from inferplane.server.errors import InferplaneError
from inferplane.server.tensors import MAX_SIGNATURE_BYTES, Signature, TensorSpec, signature_message
from tests.support.inspection import INVALID, UNSUPPORTED, inspect, refusal
from tests.support.onnx_models import ELEMENT_TYPES, identity, model, tensor


async def test_names_every_element_type_in_order() -> None:
    names = list(ELEMENT_TYPES)
    proto = model(
        [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in names],
        [tensor(f"in_{name}", name, [2, "N"]) for name in names],
        [tensor(f"out_{name}", name, [2, "N"]) for name in names],
    )
    signature = await inspect(proto.SerializeToString())
    assert signature == Signature(
        tuple(TensorSpec(f"in_{name}", name, (2, -1)) for name in names),
        tuple(TensorSpec(f"out_{name}", name, (2, -1)) for name in names),
    )


@pytest.mark.parametrize(
    ("declared", "shape"),
    [([], ()), ([3], (3,)), (["N", None, 2], (-1, -1, 2)), ([-1, 4], (-1, 4))],
)
async def test_free_sizes_are_minus_one_and_a_scalar_has_no_dimension(
    declared: list[int | str | None], shape: tuple[int, ...]
) -> None:
    signature = await inspect(identity("FP32", declared).SerializeToString())
    assert signature == Signature((TensorSpec("x", "FP32", shape),), (TensorSpec("y", "FP32", shape),))


async def test_initializers_are_not_inputs() -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    proto = model(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        [tensor("w", "FP32", [1]), tensor("x", "FP32", ["N"])],
        [tensor("y", "FP32", ["N"])],
        [weight],
    )
    assert [spec.name for spec in (await inspect(proto.SerializeToString())).inputs] == ["x"]


async def test_unknown_operators_of_a_custom_domain_pass() -> None:
    proto = identity()
    proto.graph.node[0].domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    assert (await inspect(proto.SerializeToString())).inputs[0].name == "x"


async def test_tiny_chunks_and_empty_chunks_give_the_same() -> None:
    data = identity().SerializeToString()

    async def chunks() -> AsyncIterator[bytes]:
        for byte in data:
            yield bytes([byte])
            yield b""

    assert await inspect_onnx(chunks()) == await inspect(data)


def external(proto: onnx.TensorProto) -> onnx.TensorProto:
    proto.data_location = TensorProto.EXTERNAL
    entry = proto.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return proto


def weight() -> onnx.TensorProto:
    return helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])


def external_initializer(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(external(weight()))


def external_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], value=external(weight())))


def external_in_subgraph(proto: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [tensor("w", "FP32", [1])], [external(weight())])
    proto.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))


def external_in_function(proto: onnx.ModelProto) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=external(weight()))
    opset = helper.make_opsetid("", 13)
    proto.functions.append(helper.make_function("com.example", "f", [], ["c"], [constant], [opset]))


def external_sparse(proto: onnx.ModelProto) -> None:
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(external(weight()), indices, [4]))


@pytest.mark.parametrize(
    "change",
    [
        external_initializer,
        external_attribute,
        external_in_subgraph,
        external_in_function,
        external_sparse,
    ],
)
async def test_external_data_is_refused_wherever_it_hides(change: Callable[[onnx.ModelProto], None]) -> None:
    proto = identity()
    change(proto)
    expected = (UNSUPPORTED, "the model keeps tensors in other files (external data)")
    assert await refusal(proto.SerializeToString()) == expected


def sequence_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1]))


def optional_output(proto: onnx.ModelProto) -> None:
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    proto.graph.output[0].type.CopyFrom(optional)


def set_element_type(number: int) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.elem_type = number

    return change


def unknown_rank(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.ClearField("shape")


def empty_dimension(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 0


def newer_ir(proto: onnx.ModelProto) -> None:
    proto.ir_version = 999


def newer_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 999


def long_name(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "x" * 257


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (sequence_input, "input 'x' is no tensor but of kind sequence"),
        (optional_output, "output 'y' is no tensor but of kind optional"),
        (
            set_element_type(TensorProto.BFLOAT16),
            "input 'x' has the element type bfloat16, which is not served",
        ),
        (set_element_type(4711), "input 'x' has the element type 4711, which is not served"),
        (unknown_rank, "output 'y' does not state its number of dimensions"),
        (empty_dimension, "input 'x' has a dimension of size 0"),
        (newer_ir, f"ir_version 999 is newer than {onnx.IR_VERSION}, the newest supported one"),
        (
            newer_opset,
            f"opset 999 is newer than {onnx.defs.onnx_opset_version()}, the newest supported one",
        ),
        (long_name, "the name of an input is longer than 256 characters or not printable"),
    ],
)
async def test_what_cannot_be_served_is_unsupported(change: Callable[[onnx.ModelProto], None], detail: str) -> None:
    proto = identity()
    change(proto)
    assert await refusal(proto.SerializeToString()) == (UNSUPPORTED, detail)


@pytest.mark.parametrize("letter", ["x", "\N{GRINNING FACE}"])
async def test_a_signature_of_more_than_64_kib_is_unsupported(letter: str) -> None:
    names = [f"{number}".ljust(252, letter) for number in range(1024)]
    proto = model(
        [helper.make_node("Identity", [f"i-{name}"], [f"o-{name}"]) for name in names],
        [tensor(f"i-{name}", "FP32", ["N"]) for name in names],
        [tensor(f"o-{name}", "FP32", ["N"]) for name in names],
    )
    reason, detail = await refusal(proto.SerializeToString())
    assert reason == UNSUPPORTED
    assert detail.endswith("and 65536 is the limit: give the model fewer of them, shorter names or fewer dimensions")


async def test_a_signature_of_64_kib_is_read_whatever_its_names_are_written_in() -> None:
    names = [f"{number}".ljust(250, "\N{GRINNING FACE}") for number in range(32)]
    proto = model(
        [helper.make_node("Identity", [f"i-{name}"], [f"o-{name}"]) for name in names],
        [tensor(f"i-{name}", "FP32", ["N"]) for name in names],
        [tensor(f"o-{name}", "FP32", ["N"]) for name in names],
    )
    signature = await inspect(proto.SerializeToString())
    assert [spec.name for spec in signature.inputs] == [f"i-{name}" for name in names]
    assert MAX_SIGNATURE_BYTES - 2048 < signature_message(signature).ByteSize() <= MAX_SIGNATURE_BYTES


def no_graph(proto: onnx.ModelProto) -> None:
    proto.ClearField("graph")


def no_opset(proto: onnx.ModelProto) -> None:
    proto.ClearField("opset_import")


def no_ir_version(proto: onnx.ModelProto) -> None:
    proto.ClearField("ir_version")


def no_output(proto: onnx.ModelProto) -> None:
    proto.graph.ClearField("output")


def no_name(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = ""


def no_type(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].ClearField("type")


def twice(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(proto.graph.input[0])


def unknown_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (no_graph, "the model has no graph"),
        (no_opset, "the model imports no opset"),
        (no_ir_version, "the file states no ir_version"),
        (no_output, "the model has no output"),
        (no_name, "an input has no name"),
        (no_type, "input 'x' has no type"),
        (set_element_type(0), "input 'x' has no element type"),
        (twice, "two inputs have the same name"),
        (unknown_operator, "the model breaks the ONNX specification: onnx.checker refuses it"),
    ],
)
async def test_a_broken_model_is_invalid(change: Callable[[onnx.ModelProto], None], detail: str) -> None:
    proto = identity()
    change(proto)
    assert await refusal(proto.SerializeToString()) == (INVALID, detail)


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "the file is empty"),
        (pickle.dumps(Bomb()), "the file is a Python pickle, not an ONNX model"),
        (b"PK\x03\x04" + bytes(60), "the file is a ZIP archive, not an ONNX model"),
        (b"\xff" * 1000, "the file is not a complete ONNX protobuf message"),
        (identity().SerializeToString()[:-30], "the file is not a complete ONNX protobuf message"),
        (b'{"ir_version": 8}', "the file is not a complete ONNX protobuf message"),
    ],
    ids=["empty", "pickle", "zip", "garbage", "truncated", "json"],
)
async def test_other_files_are_invalid(data: bytes, detail: str) -> None:
    assert await refusal(data) == (INVALID, detail)


@settings(max_examples=10, deadline=None)
@given(
    prefix=st.integers(0, len(identity().SerializeToString())),
    junk=st.binary(max_size=400),
    suffix=st.integers(0, len(identity().SerializeToString())),
)
def test_hostile_bytes_give_a_signature_or_a_refusal(prefix: int, junk: bytes, suffix: int) -> None:
    whole = identity().SerializeToString()
    try:
        asyncio.run(inspect(whole[:prefix] + junk + whole[suffix:]))
    except InferplaneError as error:
        assert error.reason in {INVALID, UNSUPPORTED}  # noqa: PT017 - a signature is as good an outcome
