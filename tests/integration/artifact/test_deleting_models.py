"""DeleteModel, and what is removed of pushes that led to nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import URL

from inferplane.artifact.v1 import model_registry_service_pb2 as pb
from inferplane.client import Inferplane, errors
from inferplane.client.transfer import Upload
from inferplane.server.settings import ServiceName, Settings
from tests.support.artifact import CHUNK, Artifacts, bytes_of, data_messages, new_upload
from tests.support.database import rows
from tests.support.mesh import ADMIN, Mesh, reason, running_mesh

NOT_EMPTY = (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_EMPTY")
NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


def delete(artifacts: Artifacts, name: str = "models/digits", **fields: Any) -> Any:
    return artifacts.call("DeleteModel", pb.DeleteModelRequest(name=name, **fields))


def get(artifacts: Artifacts) -> Any:
    return artifacts.call("GetModel", pb.GetModelRequest(name="models/digits"))


async def test_a_model_without_versions_goes_with_its_callers_complete_uploads(
    artifacts: Artifacts, database_url: URL
) -> None:
    upload = await artifacts.push()
    await delete(artifacts)
    assert await reason(get(artifacts)) == NOT_FOUND
    assert await reason(artifacts.status(upload)) == (grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND")
    query = "SELECT actor, resource FROM reporting.audit_event WHERE action = 'model.delete'"
    assert await rows(database_url, query) == [(f"users/{ADMIN}", "models/digits")]
    await artifacts.model()


async def test_a_model_with_a_version_is_never_deleted(artifacts: Artifacts) -> None:
    await artifacts.version()
    assert await reason(delete(artifacts)) == NOT_EMPTY
    assert await reason(delete(artifacts, force=True)) == NOT_EMPTY


async def test_an_upload_on_its_way_keeps_a_model_unless_by_force(artifacts: Artifacts) -> None:
    await artifacts.write(*data_messages(new_upload(), b"abc"))
    assert await reason(delete(artifacts)) == NOT_EMPTY
    await get(artifacts)
    await delete(artifacts, force=True)
    assert await reason(get(artifacts)) == NOT_FOUND


async def test_an_upload_of_another_keeps_a_model(artifacts: Artifacts, mesh: Mesh) -> None:
    await artifacts.push()
    metadata, artifacts.metadata = artifacts.metadata, await mesh.user("alice", publisher="*")
    assert await reason(delete(artifacts)) == NOT_EMPTY
    artifacts.metadata = metadata
    await delete(artifacts)


async def test_a_model_that_is_not_there_is_not_found(artifacts: Artifacts) -> None:
    assert await reason(delete(artifacts, "models/nothing")) == NOT_FOUND


async def test_a_repeated_delete_answers_the_same_again(artifacts: Artifacts) -> None:
    await delete(artifacts, idempotency_key="k")
    assert await delete(artifacts, idempotency_key="k") == pb.DeleteModelResponse()
    assert await reason(delete(artifacts)) == NOT_FOUND


async def test_who_may_not_write_the_model_may_not_delete_it(artifacts: Artifacts, mesh: Mesh) -> None:
    artifacts.metadata = await mesh.user("alice", publisher="other-*", viewer="*")
    assert await reason(delete(artifacts)) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


async def test_where_an_upload_is_named_the_callers_other_uploads_keep_a_model(artifacts: Artifacts) -> None:
    first, second = await artifacts.push(), await artifacts.push()
    assert await reason(delete(artifacts, upload=first)) == NOT_EMPTY
    assert (await artifacts.status(first)).complete
    await artifacts.create_version(second)


async def test_where_an_upload_is_named_it_goes_with_the_model(artifacts: Artifacts) -> None:
    upload = await artifacts.push()
    await delete(artifacts, upload=upload)
    assert await reason(get(artifacts)) == NOT_FOUND


async def test_an_upload_of_another_model_is_refused(artifacts: Artifacts) -> None:
    call = delete(artifacts, upload=new_upload("other"))
    assert await reason(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@asynccontextmanager
async def client(mesh: Mesh, artifacts: Artifacts) -> AsyncIterator[Inferplane]:
    endpoints = {name.value: address for name, address in mesh.settings.endpoints.items()}
    unused = dict.fromkeys(("inference", "reporting"), endpoints[ServiceName.ARTIFACT])
    async with Inferplane.connect({**endpoints, **unused}, artifacts.metadata[0][1].removeprefix("Bearer ")) as plane:
        yield plane


async def test_a_push_that_is_refused_leaves_no_model(mesh: Mesh, tmp_path: Path) -> None:
    artifacts = await Artifacts.of(mesh)
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model at all")
    async with client(mesh, artifacts) as plane:
        with pytest.raises(errors.InvalidArgument):
            await plane.artifact.push("digits", path)
        assert await reason(get(artifacts)) == NOT_FOUND
        await artifacts.model()
        with pytest.raises(errors.InvalidArgument):
            await plane.artifact.push("digits", path)
    await get(artifacts)


async def test_a_push_that_is_too_large_leaves_no_model(settings: Settings, tmp_path: Path) -> None:
    small = settings.model_copy(update={"max_artifact_size": CHUNK})
    path = tmp_path / "large.onnx"
    path.write_bytes(bytes_of(CHUNK + 1))
    async with running_mesh(small, ServiceName.AUTH, ServiceName.ARTIFACT) as mesh:
        artifacts = await Artifacts.of(mesh)
        async with client(mesh, artifacts) as plane:
            with pytest.raises(errors.ResourceExhausted):
                await plane.artifact.push("digits", path)
        assert await reason(get(artifacts)) == NOT_FOUND


async def test_a_push_that_is_refused_leaves_the_upload_of_another_push_of_the_same_user(
    mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = await Artifacts.of(mesh)
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model at all")
    others: list[str] = []
    run = Upload.run

    async def run_beside_another(upload: Upload) -> None:
        others.append(await artifacts.push())
        await run(upload)

    monkeypatch.setattr(Upload, "run", run_beside_another)
    async with client(mesh, artifacts) as plane:
        with pytest.raises(errors.InvalidArgument):
            await plane.artifact.push("digits", path)
    (other,) = others
    await artifacts.create_version(other)
