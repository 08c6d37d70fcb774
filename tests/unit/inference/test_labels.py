"""Predicted classes in answers."""

import struct
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from inferplane.server.inference.records.labels import predicted_labels
from inferplane.server.limits import MAX_LABELS


def answer(datatype: str, shape: list[int], raw: bytes) -> bytes:
    message = service_pb2.ModelInferResponse(model_name="m")
    message.outputs.add(name="other", datatype="FP32", shape=[1])
    message.outputs.add(name="label", datatype=datatype, shape=shape)
    message.raw_output_contents.extend([bytes(4), raw])
    serialized: bytes = message.SerializeToString()
    return serialized


@pytest.mark.parametrize(
    ("datatype", "values", "labels"),
    [
        ("INT64", np.array([3, -1], "<i8"), ["3", "-1"]),
        ("UINT64", np.array([2**64 - 1], "<u8"), [str(2**64 - 1)]),
        ("INT32", np.array([[7], [8]], "<i4"), ["7", "8"]),
        ("BOOL", np.array([1, 0], "u1"), ["1", "0"]),
        ("FP32", np.array([[0.1, 0.9], [0.7, 0.3]], "<f4"), ["1", "0"]),
        ("FP16", np.array([[1, 2, 3]], "<f2"), ["2"]),
    ],
)
def test_labels_of_each_kind(datatype: str, values: Any, labels: list[str]) -> None:
    assert predicted_labels(answer(datatype, list(values.shape), values.tobytes()), "label") == labels


def test_texts_are_labels() -> None:
    raw = b"".join(struct.pack("<I", len(text)) + text for text in (b"cat", "süß".encode(), b"\0"))
    assert predicted_labels(answer("BYTES", [3], raw), "label") == ["cat", "süß", "\ufffd"]


def test_an_answer_without_the_output_has_no_labels() -> None:
    assert predicted_labels(answer("INT64", [1], bytes(8)), "absent") == []


def test_more_rows_than_are_measured_give_none() -> None:
    rows = MAX_LABELS + 1
    assert predicted_labels(answer("INT8", [rows], bytes(rows)), "label") == []
    assert predicted_labels(answer("BYTES", [rows], bytes(4 * rows)), "label") == []
