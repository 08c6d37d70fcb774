"""Predicted classes in answers."""

import struct
from typing import Any

import numpy as np
import pytest

from inferplane.server.inference.records.labels import label_source
from inferplane.server.limits import MAX_LABELS


def labels_of(datatype: str, shape: list[int], raw: bytes) -> list[str]:
    return label_source(datatype, tuple(shape), raw).labels()


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
    assert labels_of(datatype, list(values.shape), values.tobytes()) == labels


def test_texts_are_labels() -> None:
    raw = b"".join(struct.pack("<I", len(text)) + text for text in (b"cat", "süß".encode(), b"\0"))
    assert labels_of("BYTES", [3], raw) == ["cat", "süß", "\ufffd"]


def test_more_rows_than_are_measured_give_none() -> None:
    rows = MAX_LABELS + 1
    assert labels_of("INT8", [rows], bytes(rows)) == []
    assert labels_of("BYTES", [rows], bytes(4 * rows)) == []


def test_of_a_large_output_only_the_labels_are_kept() -> None:
    scores = np.random.default_rng(1).random((1000, 1000), "f4")
    source = label_source("FP32", scores.shape, memoryview(scores.tobytes()))
    assert source.labels() == [str(best) for best in scores.argmax(axis=1)]
    assert source.size < 70_000
