"""Predicted classes, read from a model's answer."""

import struct

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
    index of each row's largest. An answer of more than MAX_LABELS rows is not measured and gives nothing.
    """
    answer = service_pb2.ModelInferResponse.FromString(response)
    names = [tensor.name for tensor in answer.outputs]
    if output not in names:
        return []
    index = names.index(output)
    tensor = answer.outputs[index]
    raw = answer.raw_output_contents[index] if index < len(answer.raw_output_contents) else b""
    if tensor.datatype == "BYTES":
        texts = _texts(raw)
        if len(texts) > MAX_LABELS:
            return []
        return [text.decode(errors="replace").replace("\0", "\ufffd")[:MAX_LABEL_LENGTH] for text in texts]
    values = np.frombuffer(raw, _DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))
    if tensor.datatype.startswith("FP"):
        values = values.reshape(len(values), -1).argmax(axis=1)
    return [] if values.size > MAX_LABELS else [str(value) for value in values.astype(object).reshape(-1)]


def _texts(raw: bytes) -> list[bytes]:
    texts: list[bytes] = []
    position = 0
    while position + 4 <= len(raw) and len(texts) <= MAX_LABELS:
        (length,) = struct.unpack_from("<I", raw, position)
        texts.append(raw[position + 4 : position + 4 + length])
        position += 4 + length
    return texts
