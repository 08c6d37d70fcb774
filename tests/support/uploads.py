"""Uploads on PostgreSQL with small chunks, without a server around them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.blobs import Blob, stream, total_size, whole_digest
from inferplane.server.artifact.local_chunk_store import LocalChunkStore
from inferplane.server.artifact.registry import Registry
from inferplane.server.artifact.repository import RegistryRepository
from inferplane.server.artifact.upload_repository import UploadRepository
from inferplane.server.artifact.uploads import Finish, Piece, Uploads
from inferplane.server.errors import InferplaneError
from inferplane.server.keys import MasterKey
from inferplane.server.names import UploadName
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory
from tests.support.artifact import digest

T = TypeVar("T")

ACTOR = Actor("users/test")
CHUNK_SIZE = 8
MAX_SIZE = 64


@dataclass
class Bench:
    """Uploads without a server around them."""

    uploads: Uploads
    store: UploadRepository
    chunks: LocalChunkStore
    units_of_work: UnitOfWorkFactory

    async def content(self, name: UploadName) -> bytes:
        manifest = await self.store.manifest(name)
        blob = Blob(manifest, total_size(manifest), await whole_digest(self.chunks, manifest))
        async with aclosing(stream(self.chunks, blob)) as contents:
            return b"".join([content async for content in contents])


def on_bench(settings: Settings, work: Callable[[Bench], Awaitable[T]]) -> T:
    """Run `work` in a loop of its own, with the model `digits` there."""

    async def run() -> T:
        database = Database(settings, ServiceName.ARTIFACT)
        try:
            units_of_work = UnitOfWorkFactory(database, MasterKey.load(settings.master_key_path))
            async with units_of_work(ACTOR) as unit:
                try:
                    await Registry().create_model(RegistryRepository(unit), "digits", "", ACTOR.subject)
                    await unit.commit()
                except InferplaneError as error:
                    assert error.reason == ErrorReason.ERROR_REASON_MODEL_EXISTS  # noqa: PT017 - either is good
            chunks = await LocalChunkStore.open(settings.data_dir / "blobs")
            store = UploadRepository(database, units_of_work)
            return await work(Bench(Uploads(store, chunks, MAX_SIZE, CHUNK_SIZE), store, chunks, units_of_work))
        finally:
            await database.close()

    return asyncio.run(run())


def new_name() -> UploadName:
    return UploadName("digits", str(uuid4()))


class BrokenError(Exception):
    """The client went away."""


async def pieces(
    name: UploadName, data: bytes, start: int, sizes: list[int], *, broken: bool, declared: bytes | None = None
) -> AsyncIterator[Piece]:
    """`data` from `start` on in pieces of `sizes`; if not `broken` also the rest, finished as what is `declared`."""
    position = start
    for size in sizes:
        yield Piece(name, position, data[position : position + size])
        position = min(position + size, max(len(data), start))
    if broken:
        raise BrokenError
    whole = data if declared is None else declared
    yield Piece(name, position, data[position:], Finish(len(whole), digest(whole)))
