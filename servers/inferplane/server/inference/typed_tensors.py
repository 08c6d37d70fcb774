"""Typed tensors of the contract to and from the Open Inference Protocol's raw contents."""

import math
import struct
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.inference.v1.tensor_pb2 import Tensor
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.inference.dataplane.request import MAX_FIELDS, MAX_HEAD, too_many_parts
from inferplane.server.inference.wire import LENGTH_DELIMITED, TooManyFieldsError, scan
from inferplane.server.tensors import DATATYPES, NUMPY_TYPES, byte_elements

__all__ = ["MAX_TYPED_ELEMENTS", "check_typed_size", "raw_contents", "typed_tensor"]

MAX_TYPED_BYTES = 128 << 10
"""Bytes of typed values in a request: they are for people, and each is a Python object on its way."""
MAX_TYPED_ELEMENTS = 64 << 10
"""Values of a typed answer."""
MAX_RANK = 32
MAX_ELEMENTS = 1 << 40
_INPUTS, _RAW = 2, 4
_TYPED = range(5, 10)

_FIELDS = {
    "BOOL": "bools", "INT8": "ints", "INT16": "ints", "INT32": "ints", "INT64": "ints", "UINT8": "ints",
    "UINT16": "ints", "UINT32": "ints", "UINT64": "uints", "FP16": "doubles", "FP32": "doubles", "FP64": "doubles",
    "BYTES": "strings",
}  # fmt: skip


_WIDEST = {"bools": "?", "ints": "<i8", "uints": "<u8", "doubles": "<f8"}


def check_typed_size(body: bytes) -> None:
    """Bound a serialised PredictRequest before it is parsed: raw values may be as large as messages may, typed ones
    and all else are small. Raises MESSAGE_TOO_LARGE, INVALID_FIELD, MALFORMED_REQUEST."""
    typed = other = parts = 0
    try:
        for field in scan(body, 0, len(body), MAX_FIELDS):
            if field.number != _INPUTS or field.wire_type != LENGTH_DELIMITED:
                other += field.end - field.tag
                continue
            inner = scan(body, field.start, field.end, MAX_FIELDS - parts)
            parts += len(inner) + 1
            for part in inner:
                size = part.end - part.tag
                typed += size if part.number in _TYPED else 0
                other += size if part.number not in _TYPED and part.number != _RAW else 0
    except TooManyFieldsError:
        raise too_many_parts() from None
    except ValueError:
        raise InferplaneError(ErrorReason.ERROR_REASON_MALFORMED_REQUEST) from None
    for what, size, most in (("typed values", typed, MAX_TYPED_BYTES), ("names and shapes", other, MAX_HEAD)):
        if size > most:
            hint = ": send raw values" if size is typed else ""
            raise InferplaneError(
                ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, detail=f"{what} of {size} bytes, {most} are allowed{hint}"
            )


def raw_contents(tensor: Tensor, path: str) -> bytes:
    """The tensor's values as raw bytes; raises INVALID_FIELD, naming `path`."""
    field = tensor.WhichOneof("values")
    if tensor.datatype not in DATATYPES:
        raise invalid_field(
            f"{path}.datatype", f"must be one of {', '.join(sorted(DATATYPES))}, not '{tensor.datatype[:16]}'"
        )
    elements = _elements_of(tensor.shape, f"{path}.shape")
    if field == "raw":
        return tensor.raw
    if field is None and elements == 0:
        return b""
    if field is None or field != _FIELDS.get(tensor.datatype):
        wanted = f"raw or {_FIELDS[tensor.datatype]}" if tensor.datatype in _FIELDS else "raw"
        raise invalid_field(f"{path}.values", f"must be {wanted} for {tensor.datatype}")
    values: Sequence[Any] = getattr(tensor, field).values
    if len(values) != elements:
        raise invalid_field(f"{path}.{field}.values", f"must hold {elements} values for its shape, not {len(values)}")
    if field == "strings":
        return b"".join(struct.pack("<I", len(text)) + text for text in (value.encode() for value in values))
    return _packed(values, tensor.datatype, f"{path}.{field}.values")


def _elements_of(shape: Sequence[int], path: str) -> int:
    if len(shape) > MAX_RANK:
        raise invalid_field(path, f"must have at most {MAX_RANK} dimensions, not {len(shape)}")
    elements = 1
    for size in shape:
        if size < 0:
            raise invalid_field(path, "must not hold negative sizes")
        elements *= size
        if elements > MAX_ELEMENTS:
            raise invalid_field(path, f"must be of at most {MAX_ELEMENTS} values")
    return elements


def _packed(values: Sequence[Any], datatype: str, path: str) -> bytes:
    dtype = np.dtype(NUMPY_TYPES[datatype])
    wide = np.fromiter(values, _WIDEST[_FIELDS[datatype]])
    if dtype.kind in "iu" and wide.size:
        bounds = np.iinfo(dtype)
        if wide.min() < bounds.min or wide.max() > bounds.max:
            raise invalid_field(path, f"must be {bounds.min} to {bounds.max} for {datatype}")
    with np.errstate(over="ignore"):
        return wide.astype(dtype).tobytes()


def typed_tensor(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """A tensor with typed values; BYTES that are not UTF-8 stay raw, and so does what has no typed form.

    Raises ValueError where `raw` does not hold what the shape says.
    """
    tensor = Tensor(name=name, datatype=datatype, shape=shape)
    if datatype not in _FIELDS:
        tensor.raw = raw
    elif datatype == "BYTES":
        wanted = math.prod(shape)
        elements = list(islice(byte_elements(raw), wanted + 1))
        if len(elements) != wanted:
            raise ValueError(f"there are not {wanted} elements of BYTES")
        try:
            tensor.strings.values.extend(str(element, "utf-8") for element in elements)
        except UnicodeDecodeError:
            tensor.raw = raw
    else:
        getattr(tensor, _FIELDS[datatype]).values.extend(np.frombuffer(raw, NUMPY_TYPES[datatype]).tolist())
    return tensor
