"""The registry's SQL."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.blobs import Blob
from inferplane.server.artifact.registry import Alias, Model, OwnUploads, Version
from inferplane.server.artifact.tables import model, model_alias, model_version, upload
from inferplane.server.artifact.upload_repository import UploadReader
from inferplane.server.artifact.uploads import Upload
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now
from inferplane.server.names import ALIAS, VERSION, AliasName, UploadName, VersionName
from inferplane.server.storage.database import Database
from inferplane.server.storage.pages import PAGE_BYTES, Page, fitting
from inferplane.server.storage.unit_of_work import UnitOfWork
from inferplane.server.tensors import signature_from_bytes, signature_message

__all__ = ["Candidates", "RegistryReader", "RegistryRepository"]


def _model(row: Any) -> Model:
    return Model(row.name, row.description, row.created_at, row.creator)


def _alias(row: Any) -> Alias:
    return Alias(AliasName(row.model, row.alias), row.version, row.updated_at)


def _version(row: Any) -> Version:
    return Version(
        name=VersionName(row.model, row.version),
        upload=UploadName(row.model, str(row.upload_id)),
        digest=row.digest,
        size=row.size,
        format=row.format,
        signature=signature_from_bytes(row.signature),
        label_output=row.label_output,
        created_at=row.created_at,
        creator=row.creator,
    )


class RegistryReader:
    """Reads, on any connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def model(self, name: str) -> Model:
        """Raises MODEL_NOT_FOUND."""
        row = (await self._connection.execute(sa.select(model).where(model.c.name == name))).one_or_none()
        if row is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_MODEL_NOT_FOUND, model=name)
        return _model(row)

    async def models(self, after: str | None, limit: int) -> Sequence[Model]:
        """Models by name."""
        query = sa.select(model).order_by(model.c.name).limit(limit)
        if after is not None:
            query = query.where(model.c.name > after)
        return [_model(row) for row in await self._connection.execute(query)]

    async def version(self, name: VersionName) -> Version:
        """Raises MODEL_NOT_FOUND or MODEL_VERSION_NOT_FOUND."""
        query = sa.select(model_version).where(_is_version(name))
        row = (await self._connection.execute(query)).one_or_none()
        if row is None:
            await self.model(name.model)
            raise InferplaneError(ErrorReason.ERROR_REASON_MODEL_VERSION_NOT_FOUND, version=VERSION.format(*name))
        return _version(row)

    async def aliased_version(self, name: AliasName) -> Version:
        """Raises MODEL_NOT_FOUND or MODEL_ALIAS_NOT_FOUND."""
        query = sa.select(model_version).join(model_alias).where(_is_alias(name))
        row = (await self._connection.execute(query)).one_or_none()
        if row is None:
            await self.model(name.model)
            raise InferplaneError(ErrorReason.ERROR_REASON_MODEL_ALIAS_NOT_FOUND, alias=ALIAS.format(*name))
        return _version(row)

    async def versions(self, name: str, page: Page) -> tuple[list[Version], str | None]:
        """One page, newest first, and the sort key to go on after; raises MODEL_NOT_FOUND."""
        await self.model(name)
        mine = model_version.c.model == name
        if page.after is not None:
            mine = sa.and_(mine, model_version.c.version < int(page.after))
        newest = model_version.c.version.desc()
        # Sizes first: a page of the largest signatures would not fit into memory.
        sizes = sa.select(model_version.c.version, sa.func.octet_length(model_version.c.signature).label("size"))
        found = (await self._connection.execute(sizes.where(mine).order_by(newest).limit(page.size + 1))).all()
        wanted = fitting([row.size for row in found[: page.size]], PAGE_BYTES)
        rows = (
            await self._connection.execute(sa.select(model_version).where(mine).order_by(newest).limit(wanted))
        ).all()
        # Off the loop: a page of large signatures takes a while.
        versions = await asyncio.to_thread(lambda: [_version(row) for row in rows])
        return versions, str(versions[-1].name.version) if len(found) > wanted else None

    async def aliases(self, name: str, page: Page) -> tuple[list[Alias], str | None]:
        """One page by alias, and the sort key to go on after; raises MODEL_NOT_FOUND."""
        await self.model(name)
        query = sa.select(model_alias).where(model_alias.c.model == name)
        if page.after is not None:
            query = query.where(model_alias.c.alias > page.after)
        rows = (await self._connection.execute(query.order_by(model_alias.c.alias).limit(page.size + 1))).all()
        aliases = [_alias(row) for row in rows[: page.size]]
        return aliases, aliases[-1].name.alias if len(rows) > page.size else None

    async def blob(self, name: VersionName) -> Blob:
        """The bytes of a version; raises MODEL_NOT_FOUND or MODEL_VERSION_NOT_FOUND."""
        version = await self.version(name)
        return Blob(await UploadReader(self._connection).manifest(version.upload), version.size, version.digest)

    async def is_used(self, name: UploadName) -> bool:
        """Whether the upload is a version."""
        query = sa.select(sa.true()).where(
            model_version.c.model == name.model, model_version.c.upload_id == UUID(name.upload)
        )
        return bool(await self._connection.scalar(query))


class RegistryRepository(RegistryReader):
    """Writes, in a unit of work."""

    def __init__(self, unit: UnitOfWork) -> None:
        super().__init__(unit.connection)
        self.record = unit.record

    async def add_model(self, new: Model) -> bool:
        """Whether the model was new."""
        values = {
            "name": new.name,
            "description": new.description,
            "last_version": 0,
            "created_at": new.created_at,
            "creator": new.creator,
        }
        statement = postgresql.insert(model).on_conflict_do_nothing()
        return bool((await self._connection.execute(statement, values)).rowcount)

    async def lock_model(self, name: str) -> int | None:
        """Lock the model's row until the end; its last version, or None if there is no such model."""
        query = sa.select(model.c.last_version).where(model.c.name == name).with_for_update()
        return await self._connection.scalar(query)

    async def delete_uploads(self, name: str, uploads: OwnUploads | None) -> bool:
        """Delete these uploads of the model, or all for None; whether none is left."""
        mine = upload.c.model == name
        chosen = mine
        if uploads is not None:
            chosen = sa.and_(mine, upload.c.complete, upload.c.creator == uploads.owner)
            if uploads.only is not None:
                chosen = sa.and_(chosen, upload.c.id == UUID(uploads.only.upload))
        await self._connection.execute(sa.delete(upload).where(chosen))
        return not await self._connection.scalar(sa.select(sa.exists().where(mine)))

    async def delete_model(self, name: str) -> None:
        """Delete a model that has nothing more."""
        await self._connection.execute(sa.delete(model).where(model.c.name == name))

    async def upload_to_use(self, name: UploadName) -> Upload | None:
        """An upload, or None. It counts as active now, so that it is not forgotten at this moment for its age."""
        mine = sa.and_(upload.c.model == name.model, upload.c.id == UUID(name.upload))
        await self._connection.execute(sa.update(upload).where(mine).values(active_at=now()))
        return await UploadReader(self._connection).find(name)

    async def add_version(self, version: Version) -> None:
        """Add the model's next version."""
        moved = sa.update(model).where(model.c.name == version.name.model)
        await self._connection.execute(moved.values(last_version=version.name.version))
        values = {
            "model": version.name.model,
            "version": version.name.version,
            "upload_id": UUID(version.upload.upload),
            "digest": version.digest,
            "size": version.size,
            "format": version.format,
            "signature": signature_message(version.signature).SerializeToString(),
            "label_output": version.label_output,
            "created_at": version.created_at,
            "creator": version.creator,
        }
        await self._connection.execute(sa.insert(model_version), values)

    async def version_exists(self, name: VersionName) -> bool:
        """Whether there is such a version."""
        return bool(await self._connection.scalar(sa.select(sa.true()).where(_is_version(name))))

    async def alias_for_update(self, name: AliasName) -> Alias | None:
        """The alias, locked, or None."""
        query = sa.select(model_alias).where(_is_alias(name)).with_for_update()
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _alias(row)

    async def put_alias(self, alias: Alias) -> None:
        """Point the alias at its version."""
        where_to = {"version": alias.version, "updated_at": alias.updated_at}
        values = {"model": alias.name.model, "alias": alias.name.alias, **where_to}
        statement = postgresql.insert(model_alias).values(values)
        await self._connection.execute(
            statement.on_conflict_do_update(index_elements=["model", "alias"], set_=where_to)
        )


class Candidates:
    """Finds uploads that can become versions, each time on a connection of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def candidate(self, name: UploadName) -> tuple[Upload, Blob] | None:
        """An upload that is complete and no version yet, and its bytes; None for any other."""
        async with self._database.transaction() as connection:
            uploads = UploadReader(connection)
            found = await uploads.find(name)
            if found is None or not found.complete or await RegistryReader(connection).is_used(name):
                return None
            return found, Blob(await uploads.manifest(name), found.committed_size, found.digest)


def _is_version(name: VersionName) -> sa.ColumnElement[bool]:
    return sa.and_(model_version.c.model == name.model, model_version.c.version == name.version)


def _is_alias(name: AliasName) -> sa.ColumnElement[bool]:
    return sa.and_(model_alias.c.model == name.model, model_alias.c.alias == name.alias)
