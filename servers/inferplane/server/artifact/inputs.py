"""Artifact's validated requests."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from inferplane.artifact.v1 import artifact_service_pb2 as artifact_pb
from inferplane.server.artifact.uploads import Finish, Piece
from inferplane.server.errors import invalid_field
from inferplane.server.names import (
    UPLOAD,
    AliasRef,
    Digest,
    ModelId,
    ModelRef,
    UploadName,
    UploadRef,
    VersionOrAliasRef,
    VersionRef,
)
from inferplane.server.rpc.validation import Input, parse

__all__ = [
    "AliasToSet",
    "ModelOfList",
    "ModelToDelete",
    "ModelToGet",
    "NewModel",
    "Range",
    "UploadToSee",
    "VersionToGet",
    "VersionToMake",
    "pieces_of",
]

MAX_DATA = 2 << 20


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold the character NUL")
    return text


def _not_negative(number: int) -> int:
    if number < 0:
        raise ValueError("must not be negative")
    return number


def _finish_fields(message: artifact_pb.WriteArtifactRequest.FinishWrite) -> dict[str, object]:
    return {"size": message.size, "digest": message.digest}


def _upload_if_named(text: str) -> UploadName | None:
    return UploadName(*UPLOAD.parse(text)) if text else None


Text = Annotated[str, AfterValidator(_storable)]
Amount = Annotated[int, AfterValidator(_not_negative)]


class NewModel(Input):
    model_id: ModelId
    description: Annotated[Text, Field(max_length=1024)]


class ModelToGet(Input):
    name: ModelRef


class ModelToDelete(Input):
    name: ModelRef
    force: bool
    upload: Annotated[UploadName | None, BeforeValidator(_upload_if_named)]


class ModelOfList(Input):
    parent: ModelRef


class VersionToMake(Input):
    parent: ModelRef
    upload: UploadRef
    label_output: Annotated[Text, Field(max_length=256)]


class VersionToGet(Input):
    name: VersionOrAliasRef


class AliasToSet(Input):
    name: AliasRef
    model_version: VersionRef


class UploadToSee(Input):
    upload: UploadRef


class FinishInput(Input):
    size: Amount
    digest: Digest


class PieceInput(Input):
    write_offset: Amount
    data: bytes


class LastPieceInput(PieceInput):
    finish: Annotated[FinishInput, BeforeValidator(_finish_fields)]


class Range(Input):
    model_version: VersionRef
    offset: Amount
    limit: Amount


async def pieces_of(requests: AsyncIterator[artifact_pb.WriteArtifactRequest]) -> AsyncGenerator[Piece, None]:
    upload: UploadName | None = None
    async for request in requests:
        if request.upload or upload is None:
            named = parse(UploadToSee, request).upload
            if upload not in (None, named):
                raise invalid_field("upload", "must be the same in all messages")
            upload = named
        yield _piece(upload, request)


def _piece(upload: UploadName, request: artifact_pb.WriteArtifactRequest) -> Piece:
    if len(request.data) > MAX_DATA:
        raise invalid_field("data", f"must be at most {MAX_DATA} bytes")
    if not request.HasField("finish"):
        given = parse(PieceInput, request)
        return Piece(upload, given.write_offset, given.data)
    last = parse(LastPieceInput, request)
    return Piece(upload, last.write_offset, last.data, Finish(last.finish.size, last.finish.digest))
