"""Reads what a serialised ModelInferRequest says about itself without copying its tensors, and checks it.

The message is cut where its tensor contents (field 7, `raw_input_contents`) begin. Protobuf itself parses what
comes before, so the name that is authorized is the name that Triton will read; what comes after must be tensor
contents and nothing else, or the whole is parsed.
"""

import math
from typing import NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.tensors import ITEM_SIZES, Signature, TensorSpec

__all__ = ["InferRequest", "check_inputs", "read_infer_request"]

PARSE_WHOLE_BELOW = 32 << 10
_RAW_TAG = 7 << 3 | 2
_LENGTH_DELIMITED = 2


class InferRequest(NamedTuple):
    """A request's head and the sizes of its raw tensor contents, in bytes."""

    head: service_pb2.ModelInferRequest
    raw_sizes: list[int]


def read_infer_request(data: bytes) -> InferRequest:
    """Parse all but the tensor contents; raises MALFORMED_REQUEST."""
    try:
        cut = len(data) if len(data) < PARSE_WHOLE_BELOW else _contents_begin(data)
        head = service_pb2.ModelInferRequest.FromString(data[:cut] if cut < len(data) else data)
        sizes = [len(content) for content in head.raw_input_contents]
        if cut < len(data):
            sizes = _content_sizes(data, cut)
    except (DecodeError, ValueError, IndexError) as error:
        raise InferplaneError(ErrorReason.ERROR_REASON_MALFORMED_REQUEST) from error
    return InferRequest(head, sizes)


def _contents_begin(data: bytes) -> int:
    """Where the trailing run of field 7 begins; the end if the message is not in that order."""
    position, end = 0, len(data)
    while position < end:
        start = position
        tag, position = _varint(data, position)
        if tag == _RAW_TAG:
            return start if _only_contents(data, start) else end
        if tag & 7 != _LENGTH_DELIMITED:
            return end
        length, position = _varint(data, position)
        position += length
    return end


def _only_contents(data: bytes, position: int) -> bool:
    while position < len(data):
        # One byte exactly: an over-long encoding of the tag is left to protobuf.
        if data[position] != _RAW_TAG:
            return False
        length, position = _varint(data, position + 1)
        position += length
    if position > len(data):
        raise ValueError("truncated")
    return True


def _content_sizes(data: bytes, position: int) -> list[int]:
    sizes = []
    while position < len(data):
        length, position = _varint(data, position + 1)
        sizes.append(length)
        position += length
    return sizes


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise ValueError("over-long varint")


def check_inputs(request: InferRequest, signature: Signature) -> None:
    """Raise INVALID_FIELD unless the request's inputs are those of the signature in name, type, shape and size."""
    _refuse_shared_memory(request.head)
    expected = {spec.name: spec for spec in signature.inputs}
    raw = bool(request.raw_sizes)
    if raw and len(request.raw_sizes) != len(request.head.inputs):
        raise invalid_field("raw_input_contents", "must hold one element for each input, or none")
    for index, tensor in enumerate(request.head.inputs):
        spec = expected.pop(tensor.name, None)
        if spec is None:
            names = ", ".join(spec.name for spec in signature.inputs)[:100]
            raise invalid_field(f"inputs[{index}].name", f"must be one of the model's inputs, each once: {names}")
        _check_tensor(index, tensor, spec)
        if raw and spec.datatype != "BYTES":
            _check_size(index, request.raw_sizes[index], math.prod(tensor.shape) * ITEM_SIZES[spec.datatype])
    if expected:
        raise invalid_field("inputs", f"lack the model's input {min(expected)[:100]}")


def _refuse_shared_memory(head: service_pb2.ModelInferRequest) -> None:
    # Nobody can register a region through us; one that somebody registered with Triton itself is not the caller's.
    for field, tensors in (("inputs", head.inputs), ("outputs", head.outputs)):
        for index, tensor in enumerate(tensors):
            if "shared_memory_region" in tensor.parameters:
                raise invalid_field(f"{field}[{index}].parameters", "must not name a shared memory region")


def _check_tensor(index: int, tensor: service_pb2.ModelInferRequest.InferInputTensor, spec: TensorSpec) -> None:
    if tensor.datatype != spec.datatype:
        raise invalid_field(f"inputs[{index}].datatype", f"must be {spec.datatype}")
    # Triton has no scalars: they travel as one element.
    shape = spec.shape or (1,)
    given = tensor.shape
    if len(given) != len(shape) or any(
        size < 0 or want not in (-1, size) for size, want in zip(given, shape, strict=True)
    ):
        raise invalid_field(f"inputs[{index}].shape", f"must fit {list(shape)}, where -1 is any size")


def _check_size(index: int, size: int, wanted: int) -> None:
    if size != wanted:
        raise invalid_field(f"raw_input_contents[{index}]", f"must hold {wanted} bytes for its shape, not {size}")
