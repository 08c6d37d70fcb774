"""What a model takes and gives: the signature that Artifact extracts and Inference serves."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from inferplane.common.v1 import tensor_pb2

__all__ = [
    "DATATYPES",
    "ITEM_SIZES",
    "MAX_SIGNATURE_BYTES",
    "NUMPY_TYPES",
    "Signature",
    "TensorSpec",
    "byte_elements",
    "raw_fits",
    "signature_from_bytes",
    "signature_message",
]

NUMPY_TYPES: Mapping[str, str] = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""How numpy calls each datatype's elements in raw contents. It has no BF16, and elements of BYTES differ in size."""

ITEM_SIZES: Mapping[str, int] = {
    **{name: 1 if dtype == "?" else int(dtype[-1]) for name, dtype in NUMPY_TYPES.items()},
    "BF16": 2,
}
"""Bytes of one element; BYTES has elements of any size."""

DATATYPES = frozenset({*ITEM_SIZES, "BYTES"})
"""Datatype names of the Open Inference Protocol; BYTES is Triton's TYPE_STRING."""


MAX_SIGNATURE_BYTES = 64 << 10
"""Bytes of a signature as the tables keep it. Versions that were made before there was this limit may have more."""

LENGTH_BYTES = 4
"""Each element of BYTES is preceded by its length, little-endian."""


def raw_fits(datatype: str, elements: int, size: int) -> bool:
    """Whether raw contents of `size` bytes can hold so many elements."""
    item = ITEM_SIZES.get(datatype)
    return size >= LENGTH_BYTES * elements if item is None else size == item * elements


def byte_elements(raw: bytes | memoryview) -> Iterator[memoryview]:
    """The elements of BYTES in raw contents, not copied; ValueError where one is cut off."""
    view, position = memoryview(raw), 0
    while position < len(view):
        start = position + LENGTH_BYTES
        position = start + int.from_bytes(view[position:start], "little")
        if start > len(view) or position > len(view):
            raise ValueError("an element of BYTES is cut off")
        yield view[start:position]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `shape` is in elements, -1 where the size is free; () is a scalar."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """All inputs and outputs of a model, in the model's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def signature_message(signature: Signature) -> tensor_pb2.ModelSignature:
    """A signature as a message; its serialised form is also how the tables keep it."""
    return tensor_pb2.ModelSignature(inputs=map(_message, signature.inputs), outputs=map(_message, signature.outputs))


def signature_from_bytes(data: bytes) -> Signature:
    """A signature as the tables keep it."""
    message = tensor_pb2.ModelSignature.FromString(data)
    return Signature(_specs(message.inputs), _specs(message.outputs))


def _message(spec: TensorSpec) -> tensor_pb2.TensorSpec:
    return tensor_pb2.TensorSpec(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _specs(messages: Iterable[tensor_pb2.TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, spec.datatype, tuple(spec.shape)) for spec in messages)
