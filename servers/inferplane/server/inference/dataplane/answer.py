"""Reads what Triton answered, and checks it against the signature of the version that answered."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from inferplane.server.access.snapshot import Route, Target
from inferplane.server.inference.wire import LENGTH_DELIMITED, Field, TooManyFieldsError, scan
from inferplane.server.tensors import TensorSpec, raw_fits

__all__ = ["Answer", "Output", "UnfitAnswerError", "read_answer"]

MAX_FIELDS = 8192
_RAW = 6


class UnfitAnswerError(Exception):
    """What Triton answered is not what the version's signature promises."""


class Output(NamedTuple):
    """One output of an answer: its raw bytes are those from `start` to `end` of the message."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Answer(NamedTuple):
    """A ModelInferResponse that was checked: its bytes, which version gave it, and where its outputs lie."""

    data: bytes
    deployment: str
    target: Target
    outputs: tuple[Output, ...]

    def content(self, output: Output) -> memoryview:
        """The raw bytes of an output, not copied."""
        return memoryview(self.data)[output.start : output.end]


def read_answer(data: bytes, route: Route, requested: Mapping[str, int]) -> Answer:
    """The answer to a request for the outputs `requested`, or for all if there are none. A value above 0 is the
    number of classes that were asked for in place of the tensor.

    Raises UnfitAnswerError.
    """
    try:
        head, raw = _parse(data)
    except (DecodeError, ValueError, TooManyFieldsError) as error:
        raise UnfitAnswerError("it is no ModelInferResponse") from error
    target = route.answered_by(int(head.model_version)) if head.model_version.isdecimal() else None
    if target is None:
        raise UnfitAnswerError(f"it is of version '{head.model_version[:32]}'")
    if len(raw) != len(head.outputs):
        raise UnfitAnswerError(f"it has {len(head.outputs)} outputs and {len(raw)} raw contents")
    expected = {spec.name: spec for spec in target.signature.outputs if not requested or spec.name in requested}
    outputs = tuple(
        _output(tensor, expected.pop(tensor.name, None), field.start, field.end, requested.get(tensor.name, 0))
        for tensor, field in zip(head.outputs, raw, strict=True)
    )
    if expected:
        raise UnfitAnswerError(f"it lacks output '{min(expected)[:64]}'")
    return Answer(data, route.deployment, target, outputs)


def _parse(data: bytes) -> tuple[Any, list[Field]]:
    """The head, and where the raw contents lie, which are not copied."""
    view = memoryview(data)
    head: list[memoryview] = []
    raw: list[Field] = []
    for field in scan(data, 0, len(data), MAX_FIELDS):
        if field.number == _RAW and field.wire_type == LENGTH_DELIMITED:
            raw.append(field)
        else:
            head.append(view[field.tag : field.end])
    return service_pb2.ModelInferResponse.FromString(b"".join(head)), raw


def _output(tensor: Any, spec: TensorSpec | None, start: int, end: int, classes: int) -> Output:
    if spec is None:
        raise UnfitAnswerError(f"it has an output '{tensor.name[:64]}' that was not asked for, or twice")
    shape = tuple(tensor.shape)
    datatype = "BYTES" if classes else spec.datatype
    if tensor.datatype != datatype:
        raise UnfitAnswerError(f"output '{tensor.name[:64]}' is {tensor.datatype[:16]}, not {datatype}")
    if not classes:
        _check_shape(tensor.name, shape, spec.shape or (1,))
    if not raw_fits(datatype, math.prod(shape), end - start):
        raise UnfitAnswerError(f"output '{tensor.name[:64]}' has {end - start} bytes for the shape {list(shape)}")
    return Output(tensor.name, datatype, shape, start, end)


def _check_shape(name: str, shape: tuple[int, ...], declared: tuple[int, ...]) -> None:
    fits = len(shape) == len(declared) and all(
        size >= 0 and want in (-1, size) for size, want in zip(shape, declared, strict=True)
    )
    if not fits:
        raise UnfitAnswerError(f"output '{name[:64]}' has the shape {list(shape)}, not {list(declared)}")
