"""WriteArtifact and GetWriteStatus."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from sqlalchemy import URL

from inferplane.artifact.v1 import artifact_service_pb2 as pb
from inferplane.server.settings import ServiceName, Settings
from tests.support.artifact import (
    CHUNK,
    MIB,
    MODEL_BYTES,
    Artifacts,
    bytes_of,
    data_messages,
    digest,
    finish,
    messages,
    new_upload,
    until_committed,
)
from tests.support.database import rows
from tests.support.mesh import ADMIN, Mesh, detail, error_info, failure, reason, running_mesh

MISMATCH = (grpc.StatusCode.OUT_OF_RANGE, "WRITE_OFFSET_MISMATCH")
NOT_OPEN = (grpc.StatusCode.FAILED_PRECONDITION, "UPLOAD_NOT_OPEN")
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


def message(upload: str, **fields: Any) -> pb.WriteArtifactRequest:
    return pb.WriteArtifactRequest(upload=upload, **fields)


async def violated(call: Any) -> list[str]:
    """The fields that the call is refused for."""
    error = await failure(call)
    bad_request = error_details_pb2.BadRequest()
    assert detail(error, bad_request)
    return [violation.field for violation in bad_request.field_violations]


@pytest.mark.parametrize("size", [0, 1, MIB, CHUNK, CHUNK + 1, 2 * CHUNK])
async def test_a_whole_upload_is_complete_and_has_the_digest(artifacts: Artifacts, size: int) -> None:
    data, upload = bytes_of(size), new_upload()
    answer = (await artifacts.write(*messages(upload, data))).upload
    assert (answer.name, answer.committed_size, answer.complete, answer.digest) == (upload, size, True, digest(data))
    assert await artifacts.status(upload) == answer


async def test_only_full_chunks_of_a_broken_stream_count_and_the_rest_goes_on_from_there(artifacts: Artifacts) -> None:
    data, upload = bytes_of(2 * CHUNK + 5), new_upload()
    call = artifacts.write(*data_messages(upload, data[: CHUNK + MIB]), ends=False)
    await until_committed(artifacts, upload, CHUNK)
    call.cancel()
    status = await artifacts.status(upload)
    assert (status.committed_size, status.complete, status.digest) == (CHUNK, False, "")
    answer = await artifacts.write(*messages(upload, data, CHUNK))
    assert (answer.upload.complete, answer.upload.digest) == (True, digest(data))


async def test_a_stream_that_ends_without_finish_keeps_its_full_chunks(artifacts: Artifacts) -> None:
    data, upload = bytes_of(CHUNK + 7), new_upload()
    answer = await artifacts.write(*data_messages(upload, data))
    assert (answer.upload.committed_size, answer.upload.complete) == (CHUNK, False)


@pytest.mark.parametrize("offset", [1, CHUNK - 1, CHUNK + 1])
async def test_an_offset_that_is_not_where_the_upload_stands_is_refused(artifacts: Artifacts, offset: int) -> None:
    data, upload = bytes_of(CHUNK), new_upload()
    await artifacts.write(*data_messages(upload, data))
    error = await failure(artifacts.write(message(upload, write_offset=offset, data=b"x"), ends=False))
    info = error_info(error)
    assert (error.code(), info.reason) == MISMATCH
    assert info.metadata["committed_size"] == str(CHUNK)


@pytest.mark.parametrize("offset", [0, 2, 4])
async def test_a_gap_or_a_step_back_within_a_stream_is_refused(artifacts: Artifacts, offset: int) -> None:
    upload = new_upload()
    first = message(upload, data=b"abc")
    call = artifacts.write(first, message(upload, write_offset=offset, data=b"d"), ends=False)
    assert await reason(call) == MISMATCH


async def test_a_new_upload_begins_at_zero_or_not_at_all(artifacts: Artifacts) -> None:
    upload = new_upload()
    assert await reason(artifacts.write(message(upload, write_offset=5, data=b"x"), ends=False)) == MISMATCH
    assert await reason(artifacts.status(upload)) == (grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND")


@pytest.mark.parametrize("changes", [{"size": 4}, {"size": 2}, {"digest": digest(b"other")}])
async def test_wrong_bytes_are_discarded(artifacts: Artifacts, changes: dict[str, Any]) -> None:
    upload = new_upload()
    last = message(upload, write_offset=3, finish=finish(b"abc", **changes))
    call = artifacts.write(message(upload, data=b"abc"), last)
    assert await reason(call) == (grpc.StatusCode.DATA_LOSS, "DIGEST_MISMATCH")
    assert await reason(artifacts.status(upload)) == (grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND")
    answer = await artifacts.write(*messages(upload, b"abc"))
    assert answer.upload.digest == digest(b"abc")


async def test_damage_on_disk_is_found_at_the_end_and_mended_by_writing_again(
    artifacts: Artifacts, settings: Settings
) -> None:
    data, upload = bytes_of(CHUNK + 1), new_upload()
    await artifacts.write(*data_messages(upload, data))
    (chunk,) = chunk_files(settings)
    chunk.write_bytes(b"damaged")
    call = artifacts.write(*messages(upload, data, CHUNK))
    assert await reason(call) == (grpc.StatusCode.DATA_LOSS, "BLOB_CORRUPT")
    answer = await artifacts.write(*messages(upload, data))
    assert answer.upload.digest == digest(data)


def chunk_files(settings: Settings) -> list[Path]:
    return [path for path in (settings.data_dir / "blobs").glob("*/*") if path.is_file()]


async def test_finish_may_come_with_the_last_bytes(artifacts: Artifacts) -> None:
    answer = await artifacts.write(message(new_upload(), data=b"abc", finish=finish(b"abc")))
    assert answer.upload.complete


async def test_nothing_may_follow_finish(artifacts: Artifacts) -> None:
    upload = new_upload()
    call = artifacts.write(*messages(upload, b"abc"), message(upload, write_offset=3, data=b"d"), ends=False)
    assert await violated(call) == ["finish"]
    assert not (await artifacts.status(upload)).complete


async def test_a_complete_upload_answers_the_same_finish_again(artifacts: Artifacts) -> None:
    upload = await artifacts.push()
    answer = await artifacts.write(message(upload, write_offset=len(MODEL_BYTES), finish=finish(MODEL_BYTES)))
    assert answer.upload == await artifacts.status(upload)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": b"x"},
        {"write_offset": len(MODEL_BYTES), "data": b"x"},
        {"write_offset": len(MODEL_BYTES), "finish": finish(MODEL_BYTES, size=1)},
        {"write_offset": len(MODEL_BYTES), "finish": finish(MODEL_BYTES, digest=digest(b"other"))},
        {"write_offset": len(MODEL_BYTES)},
    ],
)
async def test_a_complete_upload_takes_nothing_else(artifacts: Artifacts, fields: dict[str, Any]) -> None:
    upload = await artifacts.push()
    assert await reason(artifacts.write(message(upload, **fields), ends=False)) == NOT_OPEN
    assert (await artifacts.status(upload)).complete


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"data": bytes(2 * MIB + 1)}, "data"),
        ({"write_offset": -1}, "write_offset"),
        ({"finish": finish(b"", size=-1)}, "finish.size"),
        ({"finish": finish(b"", digest="sha256:abc")}, "finish.digest"),
        ({"finish": finish(b"", digest=digest(b"").upper())}, "finish.digest"),
    ],
)
async def test_a_bad_field_is_refused_by_its_path(artifacts: Artifacts, fields: dict[str, Any], path: str) -> None:
    assert await violated(artifacts.write(message(new_upload(), **fields), ends=False)) == [path]


async def test_two_mebibytes_a_message_are_taken(artifacts: Artifacts) -> None:
    data, upload = bytes_of(2 * MIB), new_upload()
    answer = await artifacts.write(message(upload, data=data, finish=finish(data)))
    assert answer.upload.complete


@pytest.mark.parametrize("name", ["models/digits/uploads/1", "models/digits", "models/digits/uploads/" + "A" * 36])
async def test_a_name_that_is_no_upload_is_refused(artifacts: Artifacts, name: str) -> None:
    assert await violated(artifacts.write(message(name, data=b"x"), ends=False)) == ["upload"]


async def test_a_stream_speaks_of_one_upload(artifacts: Artifacts) -> None:
    first, other = new_upload(), new_upload()
    call = artifacts.write(message(first, data=b"a"), message(other, write_offset=1, data=b"b"), ends=False)
    assert await violated(call) == ["upload"]


async def test_later_messages_need_not_repeat_the_upload(artifacts: Artifacts) -> None:
    answer = await artifacts.write(
        message(new_upload(), data=b"ab"), message("", write_offset=2, data=b"c", finish=finish(b"abc"))
    )
    assert answer.upload.complete


async def test_an_empty_stream_is_refused(artifacts: Artifacts) -> None:
    assert await violated(artifacts.write()) == ["upload"]


async def test_an_upload_to_no_model_is_refused(artifacts: Artifacts) -> None:
    call = artifacts.write(message(new_upload("nothing"), data=b"x"), ends=False)
    assert await reason(call) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_an_artifact_may_be_as_large_as_the_settings_say_and_no_larger(settings: Settings) -> None:
    small = settings.model_copy(update={"max_artifact_size": MIB})
    async with running_mesh(small, ServiceName.AUTH, ServiceName.ARTIFACT) as mesh:
        artifacts = await Artifacts.of(mesh)
        await artifacts.model()
        data = bytes_of(MIB + 1)
        await artifacts.push(data[:MIB])
        call = artifacts.write(message(new_upload(), data=data), ends=False)
        assert await reason(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ARTIFACT_TOO_LARGE")


async def test_an_upload_that_became_too_large_is_discarded(settings: Settings) -> None:
    small = settings.model_copy(update={"max_artifact_size": CHUNK})
    async with running_mesh(small, ServiceName.AUTH, ServiceName.ARTIFACT) as mesh:
        artifacts = await Artifacts.of(mesh)
        await artifacts.model()
        upload = new_upload()
        await artifacts.write(*data_messages(upload, bytes_of(CHUNK)))
        call = artifacts.write(message(upload, write_offset=CHUNK, data=b"x"), ends=False)
        assert await reason(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ARTIFACT_TOO_LARGE")
        assert await reason(artifacts.status(upload)) == (grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND")


async def test_a_stream_that_another_one_overtook_is_told_and_changes_nothing(artifacts: Artifacts) -> None:
    upload = new_upload()
    slow, fast = bytes_of(CHUNK, seed=1), bytes_of(CHUNK, seed=2)
    first, *others = data_messages(upload, slow)
    call = artifacts.bytes.WriteArtifact(metadata=artifacts.metadata)
    await call.write(first)
    await until_committed(artifacts, upload, 0)
    await artifacts.write(*messages(upload, fast))
    for request in others:
        await call.write(request)
    assert await reason(call) == (grpc.StatusCode.ABORTED, "UPLOAD_BUSY")
    assert (await artifacts.status(upload)).digest == digest(fast)


async def test_an_upload_is_audited_at_its_beginning_and_end(artifacts: Artifacts, database_url: URL) -> None:
    upload = await artifacts.push(bytes_of(CHUNK + 1))
    query = "SELECT action, actor FROM reporting.audit_event WHERE resource = $1 ORDER BY id"
    actor = f"users/{ADMIN}"
    assert await rows(database_url, query, upload) == [("upload.begin", actor), ("upload.complete", actor)]


async def test_a_discarded_upload_is_audited(artifacts: Artifacts, database_url: URL) -> None:
    upload = new_upload()
    await failure(artifacts.write(message(upload, data=b"abc", finish=finish(b"other"))))
    query = "SELECT action FROM reporting.audit_event WHERE resource = $1 ORDER BY id"
    assert await rows(database_url, query, upload) == [("upload.begin",), ("upload.discard",)]


async def test_who_may_not_write_to_the_model_is_refused(artifacts: Artifacts, mesh: Mesh) -> None:
    artifacts.metadata = await mesh.user("alice", publisher="other-*", viewer="*")
    upload = new_upload()
    denied = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    assert await reason(artifacts.write(message(upload, data=b"x"), ends=False)) == denied
    assert await reason(artifacts.status(upload)) == denied
