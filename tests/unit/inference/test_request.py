"""What a serialised request says of itself, against protobuf's own reading."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from inferplane.server.errors import InferplaneError
from inferplane.server.inference.dataplane import request as dataplane_request
from inferplane.server.inference.dataplane.request import InferRequest, check_request, read_envelope, read_head
from inferplane.server.inference.wire import length_prefixed
from inferplane.server.rpc.errors import reason_name
from inferplane.server.tensors import Signature, TensorSpec
from tests.support.timing import least_processor_time

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("s", "INT64", ())), (TensorSpec("y", "FP32", (-1,)),)
)


def request(**fields: Any) -> service_pb2.ModelInferRequest:
    return service_pb2.ModelInferRequest(**fields)


def read(data: bytes) -> InferRequest:
    return read_head(read_envelope(data))


def good() -> service_pb2.ModelInferRequest:
    message = request(model_name="m", id="1")
    message.inputs.add(name="x", datatype="FP32", shape=[3, 2])
    message.inputs.add(name="s", datatype="INT64", shape=[1])
    message.raw_input_contents.extend([bytes(24), bytes(8)])
    return message


@pytest.fixture(autouse=True)
def always_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small messages are parsed whole; here they take the way of large ones."""
    monkeypatch.setattr(dataplane_request, "PARSED_WHOLE", -1)


varint_tags = st.sampled_from([0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0xBA, 0x08, 0x0B, 0x3C, 0x00])
pieces = st.lists(
    st.one_of(
        st.builds(lambda tag, body: bytes([tag, len(body)]) + body, varint_tags, st.binary(max_size=20)),
        st.builds(lambda name: bytes([0x0A, len(name)]) + name, st.sampled_from([b"allowed", b"secret", b""])),
        st.binary(max_size=6),
    ),
    max_size=8,
)


@given(pieces=pieces)
def test_the_name_read_is_the_name_that_protobuf_reads(pieces: list[bytes]) -> None:
    """Otherwise a caller could be authorized for one model and served another."""
    data = b"".join(pieces)
    try:
        whole = service_pb2.ModelInferRequest.FromString(data)
    except Exception:  # noqa: BLE001 - whatever protobuf refuses
        whole = None
    try:
        found = read(data)
    except InferplaneError:
        assert whole is None
        return
    assert whole is not None
    assert (found.head.model_name, found.head.model_version) == (whole.model_name, whole.model_version)
    assert list(found.head.inputs) == list(whole.inputs)
    assert found.raw_sizes == [len(content) for content in whole.raw_input_contents]


def test_a_name_after_the_contents_counts() -> None:
    data = good().SerializeToString() + request(model_name="other").SerializeToString()
    assert read(data).head.model_name == "other"


def test_contents_are_not_copied_into_the_head() -> None:
    found = read(good().SerializeToString())
    assert list(found.head.raw_input_contents) == []
    assert found.raw_sizes == [24, 8]


def test_a_good_request_passes() -> None:
    check_request(read(good().SerializeToString()), SIGNATURE)


def drop_input(message: Any) -> None:
    del message.inputs[1], message.raw_input_contents[1]


BROKEN: dict[str, tuple[Any, str]] = {
    "unknown input": (lambda m: setattr(m.inputs[0], "name", "z"), "inputs[0].name"),
    "input given twice": (lambda m: setattr(m.inputs[1], "name", "x"), "inputs[1].name"),
    "missing input": (drop_input, "inputs"),
    "wrong type": (lambda m: setattr(m.inputs[0], "datatype", "FP64"), "inputs[0].datatype"),
    "wrong rank": (lambda m: m.inputs[0].shape.append(1), "inputs[0].shape"),
    "wrong size": (lambda m: m.inputs[0].shape.__setitem__(1, 3), "inputs[0].shape"),
    "negative size": (lambda m: m.inputs[0].shape.__setitem__(0, -1), "inputs[0].shape"),
    "too few contents": (lambda m: m.raw_input_contents.pop(), "raw_input_contents"),
    "too few bytes": (lambda m: m.raw_input_contents.__setitem__(0, b"1"), "raw_input_contents[0]"),
    "overflowing shape": (lambda m: m.inputs[0].shape.__setitem__(0, 1 << 62), "raw_input_contents[0]"),
    "zero size": (lambda m: m.inputs[0].shape.__setitem__(0, 0), "inputs[0].shape"),
    "unknown parameter": (lambda m: m.parameters["colour"].__setattr__("bool_param", True), "parameters"),
    "many parameters": (lambda m: [m.parameters[str(n)] for n in range(100)], "parameters"),
    "shared memory": (lambda m: m.inputs[0].parameters["shared_memory_region"], "inputs[0].parameters"),
    "shared memory for an answer": (
        lambda m: m.outputs.add(name="y").parameters["shared_memory_region"],
        "outputs[0].parameters",
    ),
    "unknown output": (lambda m: m.outputs.add(name="z"), "outputs[0].name"),
    "output asked for twice": (lambda m: (m.outputs.add(name="y"), m.outputs.add(name="y")), "outputs[1].name"),
    "typed beside raw": (lambda m: m.inputs[0].contents.fp32_contents.append(1), "inputs[0].contents"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_request_that_does_not_fit_is_refused_by_its_field(broken: str) -> None:
    message = good()
    change, path = BROKEN[broken]
    change(message)
    with pytest.raises(InferplaneError) as refused:
        check_request(read(message.SerializeToString()), SIGNATURE)
    assert reason_name(refused.value.reason) == "INVALID_FIELD"
    assert refused.value.violations[0][0] == path


@pytest.mark.parametrize("broken", ["wrong type", "wrong size", "wrong rank", "too few bytes"])
def test_an_error_names_the_input_and_what_was_sent(broken: str) -> None:
    message = good()
    BROKEN[broken][0](message)
    with pytest.raises(InferplaneError) as refused:
        check_request(read(message.SerializeToString()), SIGNATURE)
    problem = refused.value.violations[0][1]
    assert "'x'" in problem
    assert ", not " in problem


def test_known_parameters_and_classification_pass() -> None:
    message = good()
    message.parameters["sequence_id"].int64_param = 1
    message.outputs.add(name="y").parameters["classification"].int64_param = 3
    found = read(message.SerializeToString())
    check_request(found, SIGNATURE)
    assert found.requested == {"y": 3}


def test_bf16_passes_where_it_is_what_the_model_takes() -> None:
    message = request(model_name="m")
    message.inputs.add(name="x", datatype="BF16", shape=[3])
    message.raw_input_contents.append(bytes(6))
    check_request(read(message.SerializeToString()), Signature((TensorSpec("x", "BF16", (-1,)),), ()))


def test_typed_contents_pass_where_they_are_small() -> None:
    message = good()
    message.ClearField("raw_input_contents")
    message.inputs[0].contents.fp32_contents.extend([1.0] * 6)
    message.inputs[1].contents.int64_contents.append(1)
    check_request(read(message.SerializeToString()), SIGNATURE)
    message.inputs[0].contents.fp32_contents.append(1.0)
    with pytest.raises(InferplaneError) as refused:
        check_request(read(message.SerializeToString()), SIGNATURE)
    assert refused.value.violations[0][0] == "inputs[0].contents"


MIB = 1 << 20
HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty inputs": lambda: b"\x2a\x00" * (31 * MIB),
    "empty outputs": lambda: b"\x32\x00" * (31 * MIB),
    "empty parameters": lambda: b"\x22\x00" * (31 * MIB),
    "empty contents": lambda: b"\x3a\x00" * (31 * MIB),
    "one input of empty parameters": lambda: length_prefixed(5, b"\x22\x00" * (31 * MIB)),
    "one input of endless shape": lambda: length_prefixed(5, length_prefixed(3, b"\x01" * (62 * MIB))),
    "typed contents": lambda: length_prefixed(5, length_prefixed(5, length_prefixed(2, b"\x01" * (62 * MIB)))),
    "typed texts": lambda: length_prefixed(5, length_prefixed(5, b"\x42\x00" * (31 * MIB))),
    "a long name": lambda: length_prefixed(1, b"m" * (62 * MIB)),
    "a long id": lambda: length_prefixed(3, b"m" * (62 * MIB)),
    "unknown numbers": lambda: b"\x50\x01" * (31 * MIB),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_62_mib_of_anything_are_judged_in_milliseconds(hostile: str) -> None:
    body = length_prefixed(1, b"m") + HOSTILE[hostile]()

    def judge() -> None:
        with pytest.raises(InferplaneError) as refused:
            check_request(read(body), SIGNATURE)
        assert reason_name(refused.value.reason) in ("INVALID_FIELD", "MESSAGE_TOO_LARGE")

    assert least_processor_time(judge) < 0.1


ALLOWED: dict[str, Callable[[], bytes]] = {
    "empty texts": lambda: length_prefixed(5, length_prefixed(5, b"\x42\x00" * (1 << 19))),
    "flags one by one": lambda: length_prefixed(5, length_prefixed(5, b"\x08\x01" * (1 << 19))),
    "unknown contents": lambda: length_prefixed(5, length_prefixed(5, b"\x78\x01" * (1 << 19))),
    "empty inputs": lambda: length_prefixed(5, b"") * 4000,
    "inputs of one part, and contents": lambda: length_prefixed(5, b"\x0a\x00") * 2040 + length_prefixed(7, b"") * 2040,
    "parts of one input": lambda: length_prefixed(5, b"\x22\x00" * 4000),
}


@pytest.mark.parametrize("allowed", ALLOWED)
def test_of_small_parts_as_many_as_may_be_are_read_in_milliseconds(allowed: str) -> None:
    body = length_prefixed(1, b"m") + ALLOWED[allowed]()
    assert least_processor_time(lambda: read(body)) < 0.02
