"""Arrays survive the way over the wire."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inferplane.client.errors import Internal, InvalidArgument
from inferplane.client.tensors import DTYPES, Array, decode, encode
from inferplane.inference.v1.tensor_pb2 import Tensor

_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
_NUMBERS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(st.sampled_from([DTYPES[name], DTYPES[name].newbyteorder(">")]), _SHAPES)
)


@given(_NUMBERS)
def test_numbers_come_back_as_they_were(array: Array) -> None:
    back = decode(Tensor.FromString(encode("x", array).SerializeToString()))
    assert (back.dtype, back.shape) == (array.dtype.newbyteorder("="), array.shape)
    assert back.tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()


@given(st.lists(st.binary(max_size=9) | st.text(max_size=9), max_size=6), st.booleans())
def test_bytes_and_texts_come_back_as_bytes(values: list[bytes | str], as_column: bool) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    array = array.reshape(-1, 1) if as_column else array
    back = decode(encode("x", array))
    assert back.shape == array.shape
    assert list(back.ravel()) == [value.encode() if isinstance(value, str) else value for value in values]


@pytest.mark.parametrize("array", [np.array(["a", "bc"]), np.array([b"a", b"bc"])])
def test_fixed_width_texts_are_bytes(array: Array) -> None:
    assert list(decode(encode("x", array))) == [b"a", b"bc"]


def test_raw_bytes_are_laid_out_as_the_protocol_says() -> None:
    assert encode("x", np.array([1], dtype=">i2")).raw == b"\x01\x00"
    assert encode("x", np.array(["ab"])).raw == b"\x02\x00\x00\x00ab"


def test_an_array_that_is_not_contiguous_keeps_its_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert (decode(encode("x", array)) == array).all()


@pytest.mark.parametrize("array", [np.array([1j]), np.array([object()]), np.array(["2026-01-01"], "datetime64[D]")])
def test_types_without_a_datatype_are_refused(array: Array) -> None:
    with pytest.raises(InvalidArgument, match=r"inputs\.x"):
        encode("x", array)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(datatype="INT16", shape=[1], raw=b"\x01"),
        Tensor(datatype="INT16", shape=[2], raw=b"\x01\x00"),
        Tensor(datatype="INT16", shape=[-1], raw=b"\x01\x00"),
        Tensor(datatype="FP8", shape=[1], raw=b"\x01"),
        Tensor(datatype="BYTES", shape=[1], raw=b"\x05\x00\x00\x00ab"),
        Tensor(datatype="BYTES", shape=[1], raw=b"\x05\x00"),
        Tensor(datatype="INT8", shape=[1], ints=Tensor.IntValues(values=[300])),
        Tensor(datatype="UINT8", shape=[1], ints=Tensor.IntValues(values=[-1])),
        Tensor(datatype="FP32", shape=[1], ints=Tensor.IntValues(values=[1])),
        Tensor(datatype="INT8", shape=[1], bools=Tensor.BoolValues(values=[True])),
    ],
)
def test_malformed_tensors_are_refused(tensor: Tensor) -> None:
    with pytest.raises(Internal, match="malformed"):
        decode(tensor)


@given(st.binary(max_size=40), st.sampled_from([*DTYPES, "BYTES", "FP8"]), st.lists(st.integers(-1, 5), max_size=3))
def test_hostile_tensors_are_decoded_or_refused(raw: bytes, datatype: str, shape: list[int]) -> None:
    try:
        array = decode(Tensor(datatype=datatype, shape=shape, raw=raw))
    except Internal:
        return
    assert array.shape == tuple(shape)


def test_typed_values_are_read_too() -> None:
    assert decode(Tensor(datatype="FP16", shape=[1], doubles=Tensor.DoubleValues(values=[0.5])))[0] == 0.5
    assert decode(Tensor(datatype="BOOL", shape=[1], bools=Tensor.BoolValues(values=[True])))[0]
    assert decode(Tensor(datatype="UINT64", shape=[1], uints=Tensor.UintValues(values=[2**64 - 1])))[0] == 2**64 - 1
    assert decode(Tensor(datatype="BYTES", shape=[1], strings=Tensor.StringValues(values=["é"])))[0] == "é".encode()
