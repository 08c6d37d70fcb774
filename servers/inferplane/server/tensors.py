"""What a model takes and gives: the signature that Artifact extracts and Inference serves."""

from dataclasses import dataclass

__all__ = ["DATATYPES", "Signature", "TensorSpec"]

DATATYPES = frozenset(
    ["BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64", "BYTES"]
)
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
