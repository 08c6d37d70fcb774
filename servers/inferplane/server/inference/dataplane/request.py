"""Reads what a serialised ModelInferRequest says about itself, within bounds, and checks it against a signature.

First only the name is read, so that nothing else of a request, unless it is small, is looked at before its caller may
call that model. Then its head, which is all but the raw tensor contents (field 7): protobuf itself parses that, so what
is checked is what Triton will read.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.inference.wire import LENGTH_DELIMITED, Field, TooManyFieldsError, scan
from inferplane.server.tensors import ITEM_SIZES, Signature, TensorSpec, raw_fits

__all__ = [
    "MAX_FIELDS",
    "MAX_HEAD",
    "Envelope",
    "InferRequest",
    "check_request",
    "raw_positions",
    "read_envelope",
    "read_head",
    "too_many_parts",
]

PARSED_WHOLE = 4 << 10
"""Messages of up to so many bytes cost little, whatever they hold, and are parsed at once."""
MAX_HEAD = 64 << 10
"""Bytes of names, shapes and parameters."""
MAX_TYPED_CONTENTS = 1 << 20
"""Bytes of typed contents. They are for people; programs send raw ones, which are not parsed."""
MAX_FIELDS = 4096
"""Parts of a request, and as many of its parameters, inputs and outputs together. What is in those is bounded in bytes
alone, as typed contents and heads are: of the most that is allowed, protobuf reads a million bytes of it in 6 ms."""

MAX_PARAMETERS = 32
_NAME, _PARAMETERS, _INPUTS, _OUTPUTS, _RAW = 1, 4, 5, 6, 7
_INPUT_CONTENTS = 5

PARAMETERS = frozenset(
    {"priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "triton_enable_empty_final_response"}
)
"""Parameters of a request that Triton itself knows."""
OUTPUT_PARAMETERS = frozenset({"classification"})

_TYPED_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


class Envelope(NamedTuple):
    """A request of which the name is known. `parsed` is the whole of a small one, `fields` are those of a large one."""

    data: bytes
    name: str
    parsed: Any
    fields: list[Field]


class InferRequest(NamedTuple):
    """A request's head and the sizes of its raw tensor contents, in bytes."""

    head: service_pb2.ModelInferRequest
    raw_sizes: list[int]

    @property
    def requested(self) -> dict[str, int]:
        """The outputs asked for, each with the number of classes that were asked for in its place, or 0."""
        return {
            output.name: int(output.parameters["classification"].int64_param) if output.parameters else 0
            for output in self.head.outputs
        }


def raw_positions(data: bytes) -> list[tuple[int, int]]:
    """Where the raw contents of a request that was read lie, from and to; none where it is odd in a way that protobuf
    allows and a scan does not."""
    try:
        fields = scan(data, 0, len(data), MAX_FIELDS)
    except (ValueError, TooManyFieldsError):
        return []
    return [(f.start, f.end) for f in fields if f.number == _RAW and f.wire_type == LENGTH_DELIMITED]


def read_envelope(data: bytes) -> Envelope:
    """Read the name of the model; raises MALFORMED_REQUEST, and INVALID_FIELD for a request of too many parts."""
    try:
        if len(data) <= PARSED_WHOLE:
            parsed = service_pb2.ModelInferRequest.FromString(data)
            return Envelope(data, parsed.model_name, parsed, [])
        fields = scan(data, 0, len(data), MAX_FIELDS)
        name = ""
        # Of several values protobuf takes the last.
        for field in fields:
            if field.number == _NAME and field.wire_type == LENGTH_DELIMITED:
                name = data[field.start : field.end].decode() if field.end - field.start <= MAX_HEAD else "?"
        return Envelope(data, name, None, fields)
    except TooManyFieldsError:
        raise too_many_parts() from None
    except (DecodeError, ValueError) as error:
        raise InferplaneError(ErrorReason.ERROR_REASON_MALFORMED_REQUEST) from error


def read_head(envelope: Envelope) -> InferRequest:
    """Parse all but the raw contents.

    Raises MALFORMED_REQUEST, INVALID_FIELD for a request of too many parts, MESSAGE_TOO_LARGE for a large head.
    """
    try:
        if envelope.parsed is not None:
            head = envelope.parsed
            return InferRequest(head, [len(content) for content in head.raw_input_contents])
        pieces, sizes = _split(envelope)
        _check_head_size(envelope)
        head = service_pb2.ModelInferRequest.FromString(b"".join(pieces))
    except TooManyFieldsError:
        raise too_many_parts() from None
    except (DecodeError, ValueError) as error:
        raise InferplaneError(ErrorReason.ERROR_REASON_MALFORMED_REQUEST) from error
    if head.model_name != envelope.name:
        raise InferplaneError(ErrorReason.ERROR_REASON_MALFORMED_REQUEST)
    return InferRequest(head, sizes)


def _split(envelope: Envelope) -> tuple[list[bytes], list[int]]:
    """The pieces of the head, and the sizes of the raw contents, which are not copied."""
    data, pieces, sizes = envelope.data, [], []
    for field in envelope.fields:
        if field.number == _RAW and field.wire_type == LENGTH_DELIMITED:
            sizes.append(field.end - field.start)
        else:
            pieces.append(memoryview(data)[field.tag : field.end])
    return pieces, sizes  # type: ignore[return-value] # bytes.join takes views as well


def _check_head_size(envelope: Envelope) -> None:
    """Bound the head's bytes and parts; typed contents have a bound of their own."""
    data, head, typed, parts = envelope.data, 0, 0, 0
    for field in envelope.fields:
        if field.wire_type != LENGTH_DELIMITED or field.number == _RAW:
            continue
        head += field.end - field.start
        if field.number not in (_PARAMETERS, _INPUTS, _OUTPUTS):
            continue
        inner = scan(data, field.start, field.end, MAX_FIELDS - parts)
        parts += len(inner) + 1
        if field.number == _INPUTS:
            typed += sum(f.end - f.start for f in inner if f.number == _INPUT_CONTENTS)
    if typed > MAX_TYPED_CONTENTS:
        raise InferplaneError(
            ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE,
            detail=f"typed contents of {typed} bytes, where {MAX_TYPED_CONTENTS} are allowed: send raw_input_contents",
        )
    if head - typed > MAX_HEAD:
        raise InferplaneError(
            ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE,
            detail=f"names, shapes and parameters of more than {MAX_HEAD} bytes",
        )


def too_many_parts() -> InferplaneError:
    """Why a request of more than MAX_FIELDS parts is refused."""
    return invalid_field(
        "inputs",
        f"and all other parts of the request must be at most {MAX_FIELDS}, and so must all that these consist of",
    )


def check_request(request: InferRequest, signature: Signature) -> None:
    """Raise INVALID_FIELD unless the request's inputs are those of the signature in name, type, shape and size, and
    all else is what Triton knows."""
    head = request.head
    _check_parameters("parameters", head.parameters, PARAMETERS)
    expected = {spec.name: spec for spec in signature.inputs}
    raw = bool(request.raw_sizes)
    if raw and len(request.raw_sizes) != len(head.inputs):
        raise invalid_field(
            "raw_input_contents",
            f"must be none, or one for each of {len(head.inputs)} inputs, not {len(request.raw_sizes)}",
        )
    for index, tensor in enumerate(head.inputs):
        spec = expected.pop(tensor.name, None)
        if spec is None:
            names = ", ".join(spec.name for spec in signature.inputs)[:100]
            raise invalid_field(
                f"inputs[{index}].name",
                f"must be one of the model's inputs, each once: {names}; not '{tensor.name[:64]}'",
            )
        elements = _check_tensor(index, tensor, spec)
        if raw:
            _check_raw(index, tensor, spec, request.raw_sizes[index], elements)
        else:
            _check_typed(index, tensor, spec, elements)
    if expected:
        raise invalid_field("inputs", f"lack the model's input {min(expected)[:100]}")
    if head.outputs:
        _check_outputs(head.outputs, signature)


def _check_tensor(index: int, tensor: service_pb2.ModelInferRequest.InferInputTensor, spec: TensorSpec) -> int:
    """The number of the tensor's elements."""
    if tensor.datatype != spec.datatype:
        raise invalid_field(
            f"inputs[{index}].datatype", f"must be {spec.datatype} for '{spec.name[:64]}', not '{tensor.datatype[:16]}'"
        )
    # Triton has no scalars: they travel as one element.
    shape = spec.shape or (1,)
    given = tensor.shape
    if len(given) != len(shape):
        raise invalid_field(
            f"inputs[{index}].shape", f"must have {len(shape)} dimensions for '{spec.name[:64]}', not {len(given)}"
        )
    elements = 1
    for size, want in zip(given, shape, strict=True):
        if size < 1 or want not in (-1, size):
            raise invalid_field(
                f"inputs[{index}].shape",
                f"must fit {list(shape)} for '{spec.name[:64]}', where -1 is any size from 1, not {list(given)}",
            )
        elements *= size
    if tensor.parameters:
        _check_parameters(f"inputs[{index}].parameters", tensor.parameters, frozenset())
    return elements


def _check_raw(index: int, tensor: Any, spec: TensorSpec, size: int, elements: int) -> None:
    if tensor.HasField("contents"):
        raise invalid_field(f"inputs[{index}].contents", "must not be given beside raw_input_contents")
    path = f"raw_input_contents[{index}]"
    if raw_fits(spec.datatype, elements, size):
        return
    if (item := ITEM_SIZES.get(spec.datatype)) is None:
        raise invalid_field(path, f"must hold {elements} elements of '{spec.name[:64]}', which {size} bytes cannot")
    raise invalid_field(path, f"must hold {elements * item} bytes for the shape of '{spec.name[:64]}', not {size}")


def _check_typed(index: int, tensor: Any, spec: TensorSpec, elements: int) -> None:
    path = f"inputs[{index}].contents"
    field = _TYPED_FIELDS.get(spec.datatype)
    if field is None:
        raise invalid_field(path, f"cannot hold {spec.datatype}: send raw_input_contents")
    if (given := len(getattr(tensor.contents, field))) != elements:
        raise invalid_field(path, f"must hold {elements} {field} for the shape of '{spec.name[:64]}', not {given}")


def _check_outputs(outputs: Any, signature: Signature) -> None:
    known = {spec.name for spec in signature.outputs}
    for index, output in enumerate(outputs):
        if output.name not in known:
            names = ", ".join(spec.name for spec in signature.outputs)[:100]
            raise invalid_field(
                f"outputs[{index}].name",
                f"must be one of the model's outputs, each once: {names}; not '{output.name[:64]}'",
            )
        known.discard(output.name)
        if output.parameters:
            _check_parameters(f"outputs[{index}].parameters", output.parameters, OUTPUT_PARAMETERS)


def _check_parameters(path: str, parameters: Mapping[str, Any], known: frozenset[str]) -> None:
    if len(parameters) > MAX_PARAMETERS:
        raise invalid_field(path, f"must be at most {MAX_PARAMETERS}, not {len(parameters)}")
    for name in parameters:
        if name not in known:
            # Shared memory among them: a region that somebody registered with Triton is not the caller's.
            allowed = ", ".join(sorted(known)) or "none"
            raise invalid_field(path, f"must be of those that are known here: {allowed}; not '{name[:64]}'")
