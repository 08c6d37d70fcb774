"""Streams that nobody reads, and streams that only drip, hold up nobody else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from inferplane.artifact.v1 import artifact_service_pb2 as pb
from inferplane.server.artifact import blobs, service
from inferplane.server.identity.workloads import WorkloadSigner
from inferplane.server.settings import ServiceName, Settings
from tests.support.artifact import MIB, Artifacts, bytes_of, data_messages, new_upload
from tests.support.mesh import Mesh, Metadata, error_info, reason, running_mesh
from tests.support.onnx_models import identity

STALLED = (grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_STALLED")


def model_of(size: int) -> bytes:
    """A valid model of about so many bytes."""
    proto = identity("INT64", ["N"])
    proto.doc_string = bytes_of(size // 2).hex()
    return proto.SerializeToString()


DATA = model_of(4 * MIB)


SMALL_WINDOWS = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10))
"""With them gRPC itself reads no more than 64 KiB ahead of who reads a stream."""


@asynccontextmanager
async def another(mesh: Mesh, metadata: Metadata) -> AsyncIterator[Artifacts]:
    """The service on a connection of its own."""
    address = mesh.settings.endpoints[ServiceName.ARTIFACT]
    async with grpc.aio.insecure_channel(address, options=SMALL_WINDOWS) as channel:
        yield Artifacts(channel, metadata)


async def collect(call: Any) -> bytes:
    return b"".join([piece.data async for piece in call])


async def end_of(call: Any) -> str:
    """Read the rest; why the call failed, or nothing."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return str(error_info(error).reason)
    return ""


async def unread(artifacts: Artifacts, version: str, count: int) -> tuple[list[Any], "set[asyncio.Task[Any]]"]:
    """So many downloads, of which only the first piece is read; as many as may have begun. And these pieces."""
    calls = [artifacts.read(version) for _ in range(count)]
    pieces = {asyncio.ensure_future(call.read()) for call in calls}
    waiting = pieces
    while len(pieces) - len(waiting) < min(count, blobs.READERS_EACH):
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    return calls, pieces


async def test_downloads_that_one_caller_leaves_unread_hold_up_neither_others_nor_workloads(
    artifacts: Artifacts, mesh: Mesh
) -> None:
    version = await artifacts.create_version(await artifacts.push(DATA))
    await mesh.user("alice", admin="*")
    signer = WorkloadSigner(mesh.settings.keys_dir, ServiceName.INFERENCE)
    async with (
        another(mesh, artifacts.metadata) as careless,
        another(mesh, await mesh.login("alice")) as alice,
        another(mesh, signer.metadata(ServiceName.ARTIFACT)) as inference,
    ):
        calls, pieces = await unread(careless, version.name, 40)
        for reader in (alice, inference):
            assert await collect(reader.read(version.name)) == DATA
        assert sum(piece.done() for piece in pieces) == blobs.READERS_EACH
        for call in calls:
            call.cancel()
        assert await collect(alice.read(version.name)) == DATA


async def test_uploads_that_one_caller_lets_hang_hold_up_no_other_push(artifacts: Artifacts, mesh: Mesh) -> None:
    slow = [artifacts.write(*data_messages(new_upload(), b"abc"), ends=False) for _ in range(40)]
    await mesh.user("alice", admin="*")
    async with another(mesh, await mesh.login("alice")) as alice:
        await alice.push()
    for call in slow:
        call.cancel()
    await artifacts.push()


@asynccontextmanager
async def impatient(settings: Settings, rate: float) -> AsyncIterator[tuple[Mesh, Artifacts]]:
    """A mesh that looks at the progress of streams every two seconds."""
    changed = settings.model_copy(update={"stream_idle_limit": 2, "stream_minimum_rate": rate})
    async with running_mesh(changed, ServiceName.AUTH, ServiceName.ARTIFACT) as mesh:
        artifacts = await Artifacts.of(mesh)
        await artifacts.model()
        yield mesh, artifacts


async def test_a_download_that_nobody_reads_is_ended_and_gives_up_its_place(settings: Settings) -> None:
    async with impatient(settings, 0) as (mesh, artifacts), another(mesh, artifacts.metadata) as careless:
        version = await artifacts.create_version(await artifacts.push(DATA))
        calls, _ = await unread(careless, version.name, blobs.READERS_EACH)
        # There was no place for it until one of the others was ended.
        assert await collect(artifacts.read(version.name)) == DATA
        assert "STREAM_STALLED" in [await end_of(call) for call in calls]


async def test_a_download_whose_reader_only_sips_is_ended(settings: Settings) -> None:
    async with impatient(settings, MIB) as (mesh, artifacts), another(mesh, artifacts.metadata) as careless:
        version = await artifacts.create_version(await artifacts.push(DATA))

        async def sip() -> None:
            async for _ in careless.read(version.name):
                await asyncio.sleep(0.5)

        assert await reason(sip()) == STALLED


async def test_an_upload_that_only_drips_is_ended(settings: Settings) -> None:
    async with impatient(settings, MIB) as (_, artifacts):
        upload = new_upload()

        async def drip() -> AsyncIterator[pb.WriteArtifactRequest]:
            for request in data_messages(upload, bytes_of(80), size=1):
                yield request
                await asyncio.sleep(0.1)

        assert await reason(artifacts.bytes.WriteArtifact(drip(), metadata=artifacts.metadata)) == STALLED


async def test_one_caller_has_so_many_downloads_open_and_no_more(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "DOWNLOADS_EACH", 3)
    async with running_mesh(settings, ServiceName.AUTH, ServiceName.ARTIFACT) as mesh:
        artifacts = await Artifacts.of(mesh)
        await artifacts.model()
        version = await artifacts.create_version(await artifacts.push(DATA))
        async with another(mesh, artifacts.metadata) as careless:
            calls, _ = await unread(careless, version.name, 3)
            refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert await reason(artifacts.read(version.name)) == refused
            await mesh.user("alice", admin="*")
            async with another(mesh, await mesh.login("alice")) as alice:
                assert await collect(alice.read(version.name)) == DATA
            for call in calls:
                call.cancel()

            async def again() -> bool:
                try:
                    return await collect(artifacts.read(version.name)) == DATA
                except grpc.aio.AioRpcError:
                    return False

            async with asyncio.timeout(20):
                while not await again():
                    pass
