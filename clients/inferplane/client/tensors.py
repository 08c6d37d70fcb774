"""Tensors as numpy arrays and as the Open Inference Protocol's raw little-endian bytes."""

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferplane.client.errors import Internal
from inferplane.client.names import invalid
from inferplane.inference.v1.tensor_pb2 import Tensor

Array = NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The numpy type of each datatype but BYTES, whose arrays are of type object."""

_DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<I")


def encode(name: str, array: Array) -> Tensor:
    """Make the tensor of an array of any layout and byte order.

    Arrays of str, bytes or object become BYTES, texts as UTF-8. Raises InvalidArgument for other types.
    """
    datatype = datatype_of(name, array)
    raw = _encode_bytes(name, array) if datatype == "BYTES" else array.astype(DTYPES[datatype]).tobytes()
    return Tensor(name=name, datatype=datatype, shape=array.shape, raw=raw)


def datatype_of(name: str, array: Array) -> str:
    """Give the Open Inference Protocol's name of the array's type; raises InvalidArgument."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    datatype = _DATATYPES.get(array.dtype.newbyteorder("<"))
    if datatype is None:
        raise invalid(f"inputs.{name}", f"arrays of {array.dtype} have no datatype")
    return datatype


def decode(tensor: Tensor) -> Array:
    """Make the array of a tensor, raw or typed; BYTES become an object array of bytes.

    Raises Internal where the values do not fit the datatype and the shape.
    """
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape):
        raise _malformed(tensor, "a negative size")
    count = math.prod(shape)
    values = _decode_raw(tensor) if tensor.WhichOneof("values") in {"raw", None} else _decode_typed(tensor)
    if values.size != count:
        raise _malformed(tensor, f"{values.size} values for {count} elements")
    return values.reshape(shape)


def _malformed(tensor: Tensor, what: str) -> Internal:
    return Internal(f"the service sent a malformed tensor {tensor.name!r} of {tensor.datatype}: {what}")


def _encode_bytes(name: str, array: Array) -> bytes:
    pieces: list[bytes] = []
    for element in array.ravel(order="C"):
        if not isinstance(element, str | bytes):
            raise invalid(f"inputs.{name}", f"BYTES take str or bytes, not {type(element).__name__}")
        data = element.encode() if isinstance(element, str) else element
        pieces += (_LENGTH.pack(len(data)), data)
    return b"".join(pieces)


def _decode_raw(tensor: Tensor) -> Array:
    if tensor.datatype == "BYTES":
        return _objects(list(_elements(tensor)))
    dtype = _dtype(tensor)
    if len(tensor.raw) % dtype.itemsize:
        raise _malformed(tensor, f"{len(tensor.raw)} bytes are no whole number of elements")
    # A copy, since an array over the message's bytes could not be written to.
    return np.frombuffer(tensor.raw, dtype=dtype).astype(dtype.newbyteorder("="))


def _elements(tensor: Tensor) -> Iterator[bytes]:
    raw, position = tensor.raw, 0
    while position < len(raw):
        if position + _LENGTH.size > len(raw):
            raise _malformed(tensor, "a length is cut off")
        (length,) = _LENGTH.unpack_from(raw, position)
        position += _LENGTH.size + length
        if position > len(raw):
            raise _malformed(tensor, "an element is cut off")
        yield raw[position - length : position]


def _decode_typed(tensor: Tensor) -> Array:
    if tensor.WhichOneof("values") == "strings":
        return _objects([text.encode() for text in tensor.strings.values])
    dtype = _dtype(tensor)
    values = _typed_values(tensor)
    if _family(values.dtype) != _family(dtype):
        raise _malformed(tensor, "values of another type")
    with np.errstate(over="ignore"):
        converted = values.astype(dtype.newbyteorder("="))
    # Integers that do not fit wrap around silently.
    if _family(dtype) == "i" and not np.array_equal(converted, values):
        raise _malformed(tensor, "a value does not fit")
    return converted


def _family(dtype: np.dtype[Any]) -> str:
    return "i" if dtype.kind == "u" else dtype.kind


def _typed_values(tensor: Tensor) -> Array:
    match tensor.WhichOneof("values"):
        case "bools":
            return np.array(tensor.bools.values, dtype=np.bool_)
        case "ints":
            return np.array(tensor.ints.values, dtype=np.int64)
        case "uints":
            return np.array(tensor.uints.values, dtype=np.uint64)
        case _:
            return np.array(tensor.doubles.values, dtype=np.float64)


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise _malformed(tensor, "an unknown datatype")
    return dtype


def _objects(elements: list[bytes]) -> Array:
    # Filled one by one: np.array would turn them into fixed-width strings and lose trailing zeros.
    array = np.empty(len(elements), dtype=object)
    for index, element in enumerate(elements):
        array[index] = element
    return array
