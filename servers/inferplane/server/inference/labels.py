"""Predicted classes, read from a model's answer."""

import struct
from collections.abc import Iterator

import numpy as np
from tritonclient.grpc import service_pb2

__all__ = ["MAX_LABELS", "predicted_labels"]

MAX_LABELS = 10_000
MAX_LABEL_LENGTH = 256

_DTYPES = {
    "BOOL": "u1", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2",
    "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


def predicted_labels(response: bytes, output: str) -> list[str]:
    """One label for each row of the output named `output`, or nothing where the answer does not hold it.

    Integers (BOOL as 0 and 1) become their digits, BYTES their text; of floating-point scores of shape [N, C] the
    index of each row's largest.
    """
    answer = service_pb2.ModelInferResponse.FromString(response)
    names = [tensor.name for tensor in answer.outputs]
    if output not in names:
        return []
    index = names.index(output)
    tensor = answer.outputs[index]
    raw = answer.raw_output_contents[index] if index < len(answer.raw_output_contents) else b""
    if tensor.datatype == "BYTES":
        return [text.decode(errors="replace").replace("\0", "\ufffd")[:MAX_LABEL_LENGTH] for text in _texts(raw)]
    values = np.frombuffer(raw, _DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))
    if tensor.datatype.startswith("FP"):
        values = values.reshape(len(values), -1).argmax(axis=1)
    return [str(int(value)) for value in values.reshape(-1)[:MAX_LABELS]]


def _texts(raw: bytes) -> Iterator[bytes]:
    position = 0
    for _ in range(MAX_LABELS):
        if position + 4 > len(raw):
            return
        (length,) = struct.unpack_from("<I", raw, position)
        yield raw[position + 4 : position + 4 + length]
        position += 4 + length
