"""Predicted classes, read from the output of a model that holds them."""

from itertools import islice

import numpy as np

from inferplane.server.limits import MAX_LABEL_LENGTH, MAX_LABELS
from inferplane.server.tensors import NUMPY_TYPES, byte_elements

__all__ = ["LabelSource", "label_source"]

MAX_KEPT = 4 << 10
"""Bytes of an output that are kept until its labels are read behind the call's back; of a larger one the labels."""

MAX_LETTERS = 1 << 18
"""Letters of all labels of one prediction: a record must fit a message."""


class LabelSource:
    """What is kept of an output until somebody wants its labels: a copy of few bytes, so that the answer is let go."""

    __slots__ = ("_content", "_datatype", "_labels", "_shape", "size")

    def __init__(self, datatype: str, shape: tuple[int, ...], content: bytes, labels: list[str] | None = None) -> None:
        self._datatype = datatype
        self._shape = shape
        self._content = content
        self._labels = labels
        # A text of Python's takes about 60 bytes beside its letters. Computed once: there may be 10,000.
        self.size = len(content) if labels is None else sum(len(label.encode()) + 60 for label in labels)
        """About how many bytes this keeps."""

    def labels(self) -> list[str]:
        """One label for each row. Raises ValueError where the bytes do not hold what they should."""
        return _labels(self._datatype, self._shape, self._content) if self._labels is None else self._labels


def label_source(datatype: str, shape: tuple[int, ...], content: bytes | memoryview) -> LabelSource:
    """Take what is needed of an output. Scores of a large one are compared here and now: call it off the loop where
    `content` holds more than MAX_KEPT bytes."""
    if len(content) <= MAX_KEPT:
        return LabelSource(datatype, shape, bytes(content))
    return LabelSource(datatype, shape, b"", _labels(datatype, shape, content))


def _labels(datatype: str, shape: tuple[int, ...], content: bytes | memoryview) -> list[str]:
    """One label for each row; none where there are more than MAX_LABELS rows.

    Integers (BOOL as 0 and 1) become their digits, BYTES their text; of floating-point scores of shape [N, C] the index
    of each row's largest.
    """
    if datatype == "BYTES":
        texts = list(islice(byte_elements(content), MAX_LABELS + 1))
        if len(texts) > MAX_LABELS:
            return []
        labels = [_label(text) for text in texts]
        return labels if sum(map(len, labels)) <= MAX_LETTERS else []
    if datatype not in NUMPY_TYPES or not shape or shape[0] > MAX_LABELS:
        return []
    values = np.frombuffer(content, NUMPY_TYPES[datatype]).reshape(shape)
    if datatype == "BOOL":
        values = values.view("u1")
    if datatype.startswith("FP"):
        values = values.reshape(len(values), -1).argmax(axis=1)
    return [] if values.size > MAX_LABELS else [str(value) for value in values.reshape(-1).tolist()]


def _label(text: memoryview) -> str:
    # No letter takes more than 4 bytes.
    return str(text[: 4 * MAX_LABEL_LENGTH], "utf-8", "replace").replace("\0", "\ufffd")[:MAX_LABEL_LENGTH]
