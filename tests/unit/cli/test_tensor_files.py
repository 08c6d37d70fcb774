"""JSON inputs are typed by the signature, strictly."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inferplane.cli.tensor_files import from_json, to_json
from inferplane.client.errors import InvalidArgument
from inferplane.client.tensors import DTYPES, Array
from inferplane.common.v1.tensor_pb2 import TensorSpec


def _read(text: str, datatype: str) -> Array:
    return from_json(text, [TensorSpec(name="x", datatype=datatype)])["x"]


@given(
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda name: st.tuples(
            st.just(name), hnp.arrays(DTYPES[name], hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
        )
    )
)
def test_what_is_written_as_json_is_read_back(case: tuple[str, Array]) -> None:
    datatype, array = case
    back = _read(json.dumps(to_json(array), allow_nan=False), datatype)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


@given(st.lists(st.binary(max_size=6), min_size=1, max_size=4))
def test_bytes_are_written_and_read_back(values: list[bytes]) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    assert list(_read(json.dumps(to_json(array)), "BYTES")) == values


@pytest.mark.parametrize(
    ("text", "datatype"),
    [
        ("[1.5]", "INT32"),
        ("[300]", "INT8"),
        ("[-1]", "UINT64"),
        ("[true]", "INT32"),
        ("[1]", "BOOL"),
        ('["1"]', "FP32"),
        ("[null]", "FP32"),
        ("[1]", "BYTES"),
        ("[[1], [2, 3]]", "FP32"),
        ("[1, [2]]", "FP32"),
        ("[1]", "FP8"),
        ('[{"base64": "*"}]', "BYTES"),
        ('{"y": [1]}', "FP32"),
        ("nonsense", "FP32"),
    ],
)
def test_values_that_do_not_fit_are_refused(text: str, datatype: str) -> None:
    with pytest.raises(InvalidArgument):
        _read(text, datatype)


def test_several_inputs_must_be_named() -> None:
    specs = [TensorSpec(name="x", datatype="FP32"), TensorSpec(name="y", datatype="FP32")]
    with pytest.raises(InvalidArgument, match="x, y"):
        from_json("[1]", specs)


def test_large_unsigned_integers_stay_exact() -> None:
    assert _read(f"[1, {2**64 - 1}]", "UINT64").tolist() == [1, 2**64 - 1]


def test_special_floats_have_names() -> None:
    values = _read('["NaN", "Infinity", "-Infinity"]', "FP32")
    assert math.isnan(values[0])
    assert values[1:].tolist() == [math.inf, -math.inf]
