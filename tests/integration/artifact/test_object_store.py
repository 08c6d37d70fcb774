"""The artifact service on a real S3 server without TLS."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest

from inferplane.server.artifact import store_watch
from inferplane.server.artifact.object_chunk_store import ObjectChunkStore
from inferplane.server.commands.doctor import examine
from inferplane.server.errors import InferplaneError
from inferplane.server.settings import ServiceName, Settings
from tests.support.artifact import CHUNK, MIB, Artifacts, bytes_of, digest
from tests.support.mesh import Mesh, error_info, failure, reason, running_mesh, until
from tests.support.onnx_models import identity
from tests.support.s3 import BUCKET, S3, s3_server

SERVICE = "inferplane.artifact.v1.ArtifactService"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@asynccontextmanager
async def mesh_on(settings: Settings, url: str) -> AsyncIterator[tuple[Mesh, Artifacts]]:
    changed = settings.model_copy(update={"object_store_url": url})
    async with running_mesh(changed, ServiceName.AUTH, ServiceName.ARTIFACT) as mesh:
        artifacts = await Artifacts.of(mesh)
        await artifacts.model()
        yield mesh, artifacts


def serving(mesh: Mesh, wanted: bool, name: str = SERVICE) -> bool:
    return mesh.services[ServiceName.ARTIFACT].server.health.serving(name) is wanted


def large_model() -> bytes:
    """A valid model of two chunks."""
    proto = identity("INT64", ["N"])
    proto.doc_string = bytes_of((CHUNK + MIB) // 2).hex()
    return proto.SerializeToString()


async def test_a_model_of_several_chunks_is_pushed_and_read(settings: Settings, s3: S3) -> None:
    data = large_model()
    async with mesh_on(settings, f"s3://{BUCKET}/blobs") as (mesh, artifacts):
        assert serving(mesh, True)
        version = await artifacts.create_version(await artifacts.push(data))
        assert version.digest == digest(data)
        assert b"".join([piece.data async for piece in artifacts.read(version.name)]) == data
    keys = [item["Key"] for item in s3.client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert len(keys) == 2
    assert all(key.startswith("blobs/sha256/") for key in keys)


async def test_bytes_that_rotted_in_the_bucket_are_never_sent(settings: Settings, s3: S3) -> None:
    async with mesh_on(settings, f"s3://{BUCKET}") as (_, artifacts):
        version = await artifacts.version()
        s3.put(f"sha256/{version.digest.removeprefix('sha256:')}", b"rotten")
        assert await reason(artifacts.read(version.name)) == (grpc.StatusCode.DATA_LOSS, "BLOB_CORRUPT")


async def test_wrong_credentials_are_said_at_once_and_by_name(
    settings: Settings, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    async with mesh_on(settings, f"s3://{BUCKET}") as (mesh, artifacts):
        assert serving(mesh, False)
        assert serving(mesh, True, "inferplane.artifact.v1.ModelRegistryService")
        error = await failure(artifacts.push())
        info = error_info(error)
        assert (error.code(), info.metadata["dependency"]) == (UNAVAILABLE, "object store")
        assert "refuses our credentials" in str(error.details())


async def test_a_bucket_that_is_not_there_is_said(settings: Settings, s3: S3) -> None:
    async with mesh_on(settings, "s3://nothing-here") as (mesh, artifacts):
        assert serving(mesh, False)
        assert "no such bucket" in str((await failure(artifacts.push())).details())


async def test_a_server_that_goes_away_is_said_in_health_and_comes_back(
    settings: Settings, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_watch, "INTERVAL", 0.1)
    monkeypatch.setattr(store_watch, "TIMEOUT", 2.0)
    async with mesh_on(settings, f"s3://{BUCKET}") as (mesh, artifacts):
        version = await artifacts.version()
        s3.away()
        try:
            await until(partial(serving, mesh, False), 60)
        finally:
            s3.back()
        await until(partial(serving, mesh, True), 60)
        assert [piece async for piece in artifacts.read(version.name)]


async def test_a_port_that_nobody_listens_on_is_an_outage_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(InferplaneError) as caught:
        await ObjectChunkStore.from_url(f"s3://{BUCKET}").check(writes=False)
    assert caught.value.metadata["dependency"] == "object store"


async def test_doctor_looks_at_the_object_store(settings: Settings, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = settings.model_copy(update={"object_store_url": f"s3://{BUCKET}"})

    async def found() -> tuple[bool, str]:
        return next((ok, detail) for name, ok, detail in await examine(changed) if name == "object store")

    assert await found() == (True, f"s3://{BUCKET} answers")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    ok, detail = await found()
    assert not ok
    assert "refuses our credentials" in detail


async def test_a_disk_without_room_takes_no_uploads_and_serves_what_is_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferplane.server.artifact.local_chunk_store.LEAST_ROOM", 1 << 62)
    async with running_mesh(settings, ServiceName.AUTH, ServiceName.ARTIFACT) as mesh:
        assert serving(mesh, True)
        assert serving(mesh, False, f"{SERVICE}/WriteArtifact")
