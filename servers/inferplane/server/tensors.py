"""What a model takes and gives: the signature that Artifact extracts and Inference serves."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from inferplane.common.v1 import tensor_pb2

__all__ = ["DATATYPES", "ITEM_SIZES", "Signature", "TensorSpec", "signature_from_bytes", "signature_message"]

ITEM_SIZES: Mapping[str, int] = {
    "BOOL": 1,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Bytes of one element, for all datatypes but BYTES, whose elements differ in size."""

DATATYPES = frozenset({*ITEM_SIZES, "BYTES"})
"""Datatype names of the Open Inference Protocol; BYTES is Triton's TYPE_STRING."""


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
