"""Typed tensors to raw contents and back."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.inference.v1.inference_service_pb2 import PredictRequest
from inferplane.inference.v1.tensor_pb2 import Tensor
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.convert import infer_request
from inferplane.server.inference.typed_tensors import check_typed_size, raw_contents, typed_tensor
from inferplane.server.inference.wire import length_prefixed
from inferplane.server.rpc.errors import reason_name
from inferplane.server.tensors import NUMPY_TYPES
from tests.support.timing import least_processor_time


@pytest.mark.parametrize("datatype", NUMPY_TYPES)
@given(data=st.data())
def test_what_goes_in_comes_out(datatype: str, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=24, max_size=24))
    if datatype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    values = np.frombuffer(raw, NUMPY_TYPES[datatype])
    back = raw_contents(typed_tensor("x", datatype, [len(values)], raw), "x")
    np.testing.assert_array_equal(np.frombuffer(back, NUMPY_TYPES[datatype]), values)


@given(texts=st.lists(st.text(max_size=10), max_size=5))
def test_texts_go_in_and_come_out(texts: list[str]) -> None:
    tensor = Tensor(name="x", datatype="BYTES", shape=[len(texts)])
    tensor.strings.values.extend(texts)
    assert list(typed_tensor("x", "BYTES", [len(texts)], raw_contents(tensor, "x")).strings.values) == texts


def test_bytes_that_are_no_text_stay_raw() -> None:
    raw = b"\x01\x00\x00\x00\xff"
    assert typed_tensor("x", "BYTES", [1], raw).raw == raw


@pytest.mark.parametrize(
    ("tensor", "path"),
    [
        (Tensor(datatype="FP8", shape=[1]), "x.datatype"),
        (Tensor(datatype="FP32", shape=[-1]), "x.shape"),
        (Tensor(datatype="FP32", shape=[1]), "x.values"),
        (Tensor(datatype="FP32", shape=[1], ints=Tensor.IntValues(values=[1])), "x.values"),
        (Tensor(datatype="INT8", shape=[2], ints=Tensor.IntValues(values=[1])), "x.ints.values"),
        (Tensor(datatype="INT8", shape=[1], ints=Tensor.IntValues(values=[128])), "x.ints.values"),
        (Tensor(datatype="UINT32", shape=[1], ints=Tensor.IntValues(values=[-1])), "x.ints.values"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_field(tensor: Tensor, path: str) -> None:
    with pytest.raises(InferplaneError) as refused:
        raw_contents(tensor, "x")
    assert refused.value.violations[0][0] == path


MIB = 1 << 20
LARGE: dict[str, Callable[[], bytes]] = {
    "ints": lambda: length_prefixed(2, length_prefixed(6, length_prefixed(1, b"\x01" * (16 * MIB)))),
    "texts": lambda: length_prefixed(2, length_prefixed(9, b"\x0a\x00" * (8 * MIB))),
    "empty tensors": lambda: b"\x12\x00" * (8 * MIB),
    "names": lambda: length_prefixed(2, length_prefixed(1, b"x" * (16 * MIB))),
    "output names": lambda: length_prefixed(3, b"x" * (16 * MIB)),
}


@pytest.mark.parametrize("what", LARGE)
def test_a_large_typed_request_is_refused_before_it_is_parsed(what: str) -> None:
    body = LARGE[what]()

    def judge() -> None:
        with pytest.raises(InferplaneError) as refused:
            check_typed_size(body)
        assert reason_name(refused.value.reason) in ("INVALID_FIELD", "MESSAGE_TOO_LARGE")

    assert least_processor_time(judge) < 0.1


def test_raw_values_may_be_as_large_as_messages() -> None:
    check_typed_size(
        PredictRequest(inputs=[Tensor(name="x", datatype="UINT8", raw=bytes(32 * MIB))]).SerializeToString()
    )


def test_bf16_travels_raw() -> None:
    assert raw_contents(Tensor(name="x", datatype="BF16", shape=[1], raw=b"\0\0"), "x") == b"\0\0"
    assert typed_tensor("x", "BF16", [1], b"\0\0").raw == b"\0\0"
    with pytest.raises(InferplaneError) as refused:
        raw_contents(Tensor(name="x", datatype="BF16", shape=[1], doubles=Tensor.DoubleValues(values=[1])), "inputs[0]")
    assert refused.value.violations == (("inputs[0].values", "must be raw for BF16"),)


@pytest.mark.parametrize("shape", [[1 << 62] * 7200, [1 << 40, 1 << 40], [-1]], ids=["rank", "size", "negative"])
def test_a_shape_that_no_tensor_has_costs_nothing(shape: list[int]) -> None:
    tensor = Tensor(name="x", datatype="FP32", shape=shape, doubles=Tensor.DoubleValues(values=[1]))

    def judge() -> None:
        with pytest.raises(InferplaneError) as refused:
            raw_contents(tensor, "inputs[0]")
        assert refused.value.violations[0][0] == "inputs[0].shape"

    assert least_processor_time(judge) < 0.05


def test_a_scalar_travels_as_one_element() -> None:
    scalar = Tensor(name="x", datatype="INT64", ints=Tensor.IntValues(values=[16000]))
    (sent,) = infer_request("m", PredictRequest(inputs=[scalar])).inputs
    assert list(sent.shape) == [1]
