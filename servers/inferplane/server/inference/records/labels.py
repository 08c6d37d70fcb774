"""Predicted classes, read from a model's answer."""

import struct

import numpy as np
from tritonclient.grpc import service_pb2

from inferplane.server.limits import MAX_LABEL_LENGTH, MAX_LABELS
from inferplane.server.tensors import NUMPY_TYPES

__all__ = ["predicted_labels"]


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
    values = np.frombuffer(raw, NUMPY_TYPES[tensor.datatype]).reshape(tuple(tensor.shape))
    if tensor.datatype == "BOOL":
        values = values.view("u1")
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
