"""The SQL of uploads."""

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact import tables
from inferplane.server.artifact.blobs import Chunk
from inferplane.server.artifact.chunk_store import ChunkStore
from inferplane.server.artifact.uploads import Upload
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now
from inferplane.server.names import UPLOAD, UploadName
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory

__all__ = ["UploadReader", "UploadRepository"]

MAX_COLLECTED = 10_000
"""Chunks that one round removes at most."""

_upload = tables.upload
_upload_chunk = tables.upload_chunk
_chunk = tables.chunk


def _named(name: UploadName) -> sa.ColumnElement[bool]:
    return sa.and_(_upload.c.model == name.model, _upload.c.id == UUID(name.upload))


def _unchanged(upload: Upload) -> sa.ColumnElement[bool]:
    """Whether the row is as it was seen; one that was discarded and begun anew has another time of creation."""
    return sa.and_(
        _named(upload.name),
        _upload.c.created_at == upload.created_at,
        _upload.c.committed_size == upload.committed_size,
        ~_upload.c.complete,
    )


class UploadReader:
    """Reads, on any connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, name: UploadName) -> Upload | None:
        """The upload, or None."""
        row: Any = (await self._connection.execute(sa.select(_upload).where(_named(name)))).one_or_none()
        return None if row is None else Upload(name, row.committed_size, row.complete, row.digest, row.created_at)

    async def manifest(self, name: UploadName) -> list[Chunk]:
        """The upload's chunks in order."""
        query = sa.select(_upload_chunk.c.digest, _upload_chunk.c.size).order_by(_upload_chunk.c.position)
        query = query.where(_upload_chunk.c.model == name.model, _upload_chunk.c.upload_id == UUID(name.upload))
        return [Chunk(row.digest, row.size) for row in await self._connection.execute(query)]


class UploadRepository:
    """Each method is a transaction of its own: a stream lasts as long as its client likes, and holds no connection.

    Where `upload` is a parameter, it says how the caller saw it last; if it is no longer so, nothing is done and the
    answer is False.
    """

    def __init__(self, database: Database, units_of_work: UnitOfWorkFactory) -> None:
        self._database = database
        self._units_of_work = units_of_work

    async def find(self, name: UploadName) -> Upload | None:
        """The upload, or None."""
        async with self._database.transaction() as connection:
            return await UploadReader(connection).find(name)

    async def manifest(self, name: UploadName) -> list[Chunk]:
        """The upload's chunks in order."""
        async with self._database.transaction() as connection:
            return await UploadReader(connection).manifest(name)

    async def begin(self, name: UploadName, created_at: datetime, actor: Actor) -> Upload:
        """The new upload, or the one that is there already; raises MODEL_NOT_FOUND."""
        async with self._units_of_work(actor) as unit:
            models = sa.select(sa.true()).where(tables.model.c.name == name.model)
            # So that a model that is being deleted is seen as gone, rather than to be missed by the new row.
            models = models.with_for_update(read=True, key_share=True)
            if not await unit.connection.scalar(models):
                raise InferplaneError(ErrorReason.ERROR_REASON_MODEL_NOT_FOUND, model=name.model)
            values = {
                "model": name.model,
                "id": UUID(name.upload),
                "committed_size": 0,
                "complete": False,
                "digest": "",
                "created_at": created_at,
                "active_at": created_at,
                "creator": actor.subject,
            }
            added = await unit.connection.execute(postgresql.insert(_upload).on_conflict_do_nothing(), values)
            if added.rowcount:
                unit.record("upload.begin", UPLOAD.format(*name))
                await unit.commit()
                return Upload(name, 0, complete=False, digest="", created_at=created_at)
        present = await self.find(name)
        if present is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_UPLOAD_BUSY, retry_after=1.0)
        return present

    async def announce(self, digest: str) -> None:
        """Keep the collector from a chunk that is about to be written."""
        statement = postgresql.insert(_chunk).values(digest=digest, written_at=now())
        statement = statement.on_conflict_do_update(
            index_elements=["digest"], set_={"written_at": statement.excluded.written_at}
        )
        async with self._database.transaction() as connection:
            await connection.execute(statement)
            await connection.commit()

    async def add_chunk(self, upload: Upload, chunk: Chunk) -> bool:
        """Add a chunk at the end."""
        # Not a unit of work: the audit tells of an upload's beginning and end, not of each of its chunks.
        async with self._database.transaction() as connection:
            values = {"committed_size": upload.committed_size + chunk.size, "active_at": now()}
            changed = await connection.execute(sa.update(_upload).where(_unchanged(upload)).values(values))
            if not changed.rowcount:
                return False
            await _append(connection, upload.name, chunk)
            await connection.commit()
        return True

    async def complete(self, upload: Upload, complete: Upload, last: Chunk | None, actor: Actor) -> bool:
        """Say that all bytes are there, of which `last` are the last."""
        async with self._units_of_work(actor) as unit:
            values = {
                "committed_size": complete.committed_size,
                "complete": True,
                "digest": complete.digest,
                "active_at": now(),
            }
            changed = await unit.connection.execute(sa.update(_upload).where(_unchanged(upload)).values(values))
            if not changed.rowcount:
                return False
            if last is not None:
                await _append(unit.connection, upload.name, last)
            unit.record(
                "upload.complete",
                UPLOAD.format(*upload.name),
                size=complete.committed_size,
                digest=complete.digest,
            )
            await unit.commit()
        return True

    async def discard(self, upload: Upload, actor: Actor) -> bool:
        """Delete an upload that is not complete."""
        async with self._units_of_work(actor) as unit:
            deleted = await unit.connection.execute(sa.delete(_upload).where(_unchanged(upload)))
            if not deleted.rowcount:
                return False
            unit.record("upload.discard", UPLOAD.format(*upload.name))
            await unit.commit()
        return True

    async def delete_stale(self, active_before: datetime) -> None:
        """Delete the uploads that nothing has happened to since `active_before`, and that are no version."""
        async with self._database.transaction() as connection:
            versions = tables.model_version.c
            is_version = sa.exists().where(versions.model == _upload.c.model, versions.upload_id == _upload.c.id)
            stale = sa.and_(_upload.c.active_at < active_before, ~is_version)
            await connection.execute(sa.delete(_upload).where(stale))
            await connection.commit()

    async def unused(self, written_before: datetime) -> list[str]:
        """Digests of chunks that were written before then and are of no upload, in random order; some of them, if
        there are many."""
        # Or some that are never removed would stand before all others.
        some = sa.select(_chunk.c.digest).where(_unused(written_before)).order_by(sa.func.random())
        query = some.limit(MAX_COLLECTED)
        async with self._database.transaction() as connection:
            return list(await connection.scalars(query))

    async def collect(self, digest: str, written_before: datetime, chunks: ChunkStore) -> None:
        """Remove a chunk from `chunks`, unless it has come into use or is being written.

        The row stays locked until the chunk is gone. Who is about to write the same chunk announces it first and
        waits there for this lock, so that a chunk is not removed after it was written anew. An upload that took
        the chunk unseen would make the deletion of the row fail, before anything is removed.
        """
        claim = sa.delete(_chunk).where(_chunk.c.digest == digest, _unused(written_before))
        async with self._database.transaction() as connection:
            if (await connection.execute(claim)).rowcount:
                await chunks.delete(digest)
                await connection.commit()


def _unused(written_before: datetime) -> sa.ColumnElement[bool]:
    used = sa.exists().where(_upload_chunk.c.digest == _chunk.c.digest)
    return sa.and_(_chunk.c.written_at < written_before, ~used)


async def _append(connection: AsyncConnection, name: UploadName, chunk: Chunk) -> None:
    """Add a chunk at the end; the upload's row is locked, so that nobody else does."""
    mine = sa.and_(_upload_chunk.c.model == name.model, _upload_chunk.c.upload_id == UUID(name.upload))
    position = sa.select(sa.func.count()).where(mine).scalar_subquery()
    values = {
        "model": name.model,
        "upload_id": UUID(name.upload),
        "position": position,
        "digest": chunk.digest,
        "size": chunk.size,
    }
    await connection.execute(sa.insert(_upload_chunk).values(values))
