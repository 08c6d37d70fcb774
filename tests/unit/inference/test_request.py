"""What a serialised request says of itself, against protobuf's own reading."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from inferplane.server.errors import InferplaneError
from inferplane.server.inference.dataplane import request as dataplane_request
from inferplane.server.inference.dataplane.request import InferRequest, check_request, read_envelope, read_head
from inferplane.server.rpc.errors import reason_name
from inferplane.server.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)), TensorSpec("s", "INT64", ())), ())


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
    dataplane_request.PARSED_WHOLE = -1
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
