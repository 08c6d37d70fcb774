"""Typed tensors of the contract to and from the Open Inference Protocol's raw contents."""

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from inferplane.inference.v1.tensor_pb2 import Tensor
from inferplane.server.errors import invalid_field
from inferplane.server.tensors import NUMPY_TYPES

__all__ = ["raw_contents", "typed_tensor"]

_FIELDS = {
    "BOOL": "bools", "INT8": "ints", "INT16": "ints", "INT32": "ints", "INT64": "ints", "UINT8": "ints",
    "UINT16": "ints", "UINT32": "ints", "UINT64": "uints", "FP16": "doubles", "FP32": "doubles", "FP64": "doubles",
    "BYTES": "strings",
}  # fmt: skip


def raw_contents(tensor: Tensor, path: str) -> bytes:
    """The tensor's values as raw bytes; raises INVALID_FIELD, naming `path`."""
    field = tensor.WhichOneof("values")
    if tensor.datatype not in _FIELDS:
        raise invalid_field(f"{path}.datatype", f"must be one of {', '.join(sorted(_FIELDS))}")
    if any(size < 0 for size in tensor.shape):
        raise invalid_field(f"{path}.shape", "must not hold negative sizes")
    if field == "raw":
        return tensor.raw
    if field is None and math.prod(tensor.shape) == 0:
        return b""
    if field != _FIELDS[tensor.datatype]:
        raise invalid_field(f"{path}.values", f"must be raw or {_FIELDS[tensor.datatype]} for {tensor.datatype}")
    values: Sequence[Any] = getattr(tensor, field).values
    if len(values) != math.prod(tensor.shape):
        raise invalid_field(f"{path}.{field}.values", f"must hold {math.prod(tensor.shape)} values for its shape")
    if field == "strings":
        return b"".join(struct.pack("<I", len(text)) + text for text in (value.encode() for value in values))
    return _packed(values, tensor.datatype, f"{path}.{field}.values")


def _packed(values: Sequence[Any], datatype: str, path: str) -> bytes:
    dtype = np.dtype(NUMPY_TYPES[datatype])
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if any(not bounds.min <= value <= bounds.max for value in values):
            raise invalid_field(path, f"must be {bounds.min} to {bounds.max} for {datatype}")
    with np.errstate(over="ignore"):
        return np.array(values, dtype=dtype).tobytes()


def typed_tensor(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """A tensor with typed values; BYTES that are not UTF-8 stay raw."""
    tensor = Tensor(name=name, datatype=datatype, shape=shape)
    if datatype == "BYTES":
        try:
            tensor.strings.values.extend(text.decode() for text in _elements(raw))
        except UnicodeDecodeError:
            tensor.raw = raw
    else:
        getattr(tensor, _FIELDS[datatype]).values.extend(np.frombuffer(raw, NUMPY_TYPES[datatype]).tolist())
    return tensor


def _elements(raw: bytes) -> list[bytes]:
    elements, position = [], 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        elements.append(raw[position + 4 : position + 4 + length])
        position += 4 + length
    return elements
