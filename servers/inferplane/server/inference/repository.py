"""Inference's SQL."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from inferplane.server.inference.deployments import Deployment, Incoming, State, VersionInfo
from inferplane.server.inference.tables import deployment as deployment_table
from inferplane.server.inference.tables import other_target as target_table
from inferplane.server.storage.pages import PAGE_BYTES, Page, fitting
from inferplane.server.storage.unit_of_work import UnitOfWork
from inferplane.server.tensors import signature_from_bytes, signature_message

__all__ = ["DeploymentReader", "DeploymentRepository"]

FORMERS_KEPT = 4
"""Former targets that a deployment remembers: more are not answered with any more when the next is asked for."""

_columns = deployment_table.c
_targets = target_table.c
_live = _columns.deleted_at.is_(None)
_age = sa.extract("epoch", sa.func.now() - _targets.requested_at).label("age")
_coming = _targets.role == "INCOMING"
_plain = [column for column in _columns if column is not _columns.signature]
_plain_targets = [column for column in _targets if column is not _targets.signature]
# Of former targets nobody asks for it.
_coming_signature = sa.case((_coming, _targets.signature)).label("signature")
_unread = sa.cast(sa.null(), sa.LargeBinary).label("signature")


def _version(model: str, row: Any) -> VersionInfo:
    signature = None if row.signature is None else signature_from_bytes(row.signature)
    return VersionInfo(model, row.version, row.digest, row.size, signature, row.label_output)


def _deployment(row: Any, others: Sequence[Any]) -> Deployment:
    incoming = next((Incoming(_version(row.model, other), other.requested_at, float(other.age), other.problem)
                     for other in others if other.role == "INCOMING"), None)  # fmt: skip
    return Deployment(
        id=row.id,
        name=row.name,
        version=_version(row.model, row),
        state=row.state,
        state_message=row.state_message,
        created_at=row.created_at,
        creator=row.creator,
        requested_at=row.requested_at,
        deleted=row.deleted_at is not None,
        incoming=incoming,
        formers=tuple(_version(row.model, other) for other in others if other.role == "FORMER"),
    )


def _built(rows: Sequence[Any], others: Mapping[UUID, Sequence[Any]]) -> list[Deployment]:
    return [_deployment(row, others.get(row.id, ())) for row in rows]


def _values(version: VersionInfo) -> dict[str, Any]:
    return {
        "version": version.version,
        "digest": version.digest,
        "size": version.size,
        "signature": signature_message(version.known_signature()).SerializeToString(deterministic=True),
        "label_output": version.label_output,
    }


class DeploymentReader:
    """Reads, and the upkeep that leaves no audit event, on any connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, name: str) -> Deployment | None:
        """The deployment of that name."""
        return next(
            iter(await self._deployments(sa.select(deployment_table).where(_columns.name == name, _live))), None
        )

    async def visible(self, page: Page, visible: Callable[[str], bool]) -> tuple[list[Deployment], str | None]:
        """One page by name of those that are `visible`, and the sort key to go on after."""
        names = sa.select(_columns.name).where(_live).order_by(_columns.name)
        if page.after is not None:
            names = names.where(_columns.name > page.after)
        wanted = [name for name in await self._connection.scalars(names) if visible(name)]
        chosen = await self._fitting(wanted[: page.size])
        query = sa.select(deployment_table).where(_live, _columns.name.in_(chosen)).order_by(_columns.name)
        return await self._deployments(query), chosen[-1] if len(wanted) > len(chosen) else None

    async def _fitting(self, names: list[str]) -> list[str]:
        """The first of these deployments, as many as fit on a page."""
        size = sa.func.octet_length
        coming = sa.select(sa.func.sum(size(_targets.signature))).where(_targets.deployment_id == _columns.id, _coming)
        # The message has the signature of what serves twice.
        total = (2 * size(_columns.signature) + sa.func.coalesce(coming.scalar_subquery(), 0)).label("size")
        query = sa.select(_columns.name, total).where(_live, _columns.name.in_(names))
        sizes = {row.name: row.size for row in await self._connection.execute(query)}
        return names[: fitting([sizes.get(name, 0) for name in names], PAGE_BYTES)]

    async def all_with_deleted(self) -> list[Deployment]:
        """Everything, oldest first: what shall be served and what shall be unloaded. Signatures are not read."""
        return await self._deployments(sa.select(*_plain, _unread).order_by(_columns.id), _unread)

    async def with_signature(self, deployment: Deployment, version: VersionInfo) -> VersionInfo | None:
        """A version of the deployment's with its signature; None where the deployment has it no more."""
        mine = sa.select(_columns.signature).where(_columns.id == deployment.id, _columns.version == version.version)
        other = sa.select(_targets.signature).where(
            _targets.deployment_id == deployment.id, _targets.version == version.version
        )
        found = await self._connection.scalar(sa.union_all(mine, other).limit(1))
        return None if found is None else replace(version, signature=signature_from_bytes(found))

    async def delete(self, deployment_id: UUID) -> None:
        """Remove a deleted deployment's row, once Triton has forgotten it."""
        gone = sa.and_(_columns.id == deployment_id, sa.not_(_live))
        await self._connection.execute(sa.delete(deployment_table).where(gone))

    async def say(self, deployment_id: UUID, message: str) -> None:
        """Tell people why a deployment that does not answer yet does not."""
        waiting = sa.and_(_columns.id == deployment_id, _live, _columns.state == "LOADING")
        await self._connection.execute(sa.update(deployment_table).where(waiting).values(state_message=message))

    async def _deployments(
        self, query: sa.Select[Any], signature: sa.ColumnElement[Any] = _coming_signature
    ) -> list[Deployment]:
        """What `query` finds, with its other targets, of which `signature` is read."""
        rows = (await self._connection.execute(query)).all()
        ids = [row.id for row in rows]
        order = (_targets.requested_at, _targets.version)
        found = sa.select(*_plain_targets, signature, _age).where(_targets.deployment_id.in_(ids)).order_by(*order)
        others: dict[UUID, list[Any]] = {}
        for other in await self._connection.execute(found):
            others.setdefault(other.deployment_id, []).append(other)
        if len(rows) == 1:
            return _built(rows, others)
        # Off the loop: a page of large signatures takes a while.
        return await asyncio.to_thread(_built, rows, others)


class DeploymentRepository(DeploymentReader):
    """Writes, in a unit of work."""

    def __init__(self, unit: UnitOfWork) -> None:
        super().__init__(unit.connection)
        self.record = unit.record

    async def add(self, deployment: Deployment) -> bool:
        """Whether the name was free."""
        values = {
            "id": deployment.id,
            "name": deployment.name,
            "model": deployment.version.model,
            **_values(deployment.version),
            "state": deployment.state,
            "state_message": deployment.state_message,
            "created_at": deployment.created_at,
            "creator": deployment.creator,
            "requested_at": deployment.requested_at,
        }
        result = await self._connection.execute(postgresql.insert(deployment_table).on_conflict_do_nothing(), values)
        return bool(result.rowcount)

    async def locked(self, name: str) -> Deployment | None:
        """The deployment of that name, which nobody else changes before this unit of work ends."""
        query = sa.select(deployment_table).where(_columns.name == name, _live).with_for_update()
        return next(iter(await self._deployments(query)), None)

    async def mark_deleted(self, name: str, at: datetime) -> bool:
        """Whether there was such a deployment."""
        statement = sa.update(deployment_table).where(_columns.name == name, _live).values(deleted_at=at)
        return bool((await self._connection.execute(statement)).rowcount)

    async def set_primary(self, deployment: Deployment, version: VersionInfo) -> None:
        """Let another version be the one to serve, of a deployment that serves none."""
        await self._remember(deployment.id, deployment.version)
        await self._make_primary(deployment.id, version, state="LOADING", requested_at=sa.func.now())

    async def add_incoming(self, deployment_id: UUID, version: VersionInfo) -> None:
        """Let `version` be loaded, to take the place of the one that is served."""
        await self._put(deployment_id, version, role="INCOMING")

    async def retire_incoming(self, deployment_id: UUID) -> None:
        """Give up what was to come. It stays known, since a load of it may be beyond recall."""
        incoming = sa.and_(_targets.deployment_id == deployment_id, _targets.role == "INCOMING")
        await self._connection.execute(sa.update(target_table).where(incoming).values(role="FORMER"))
        await self._delete_formers(deployment_id)

    async def promote(self, name: str, version: VersionInfo) -> bool:
        """Let the incoming version be the one that serves; whether it still was to come."""
        deployment = await self.locked(name)
        if deployment is None or deployment.incoming is None or deployment.incoming.version != version:
            return False
        coming = deployment.incoming
        await self._remember(deployment.id, deployment.version)
        await self._make_primary(deployment.id, coming.version, state="READY", requested_at=coming.requested_at)
        await self._delete_formers(deployment.id)
        return True

    async def set_problem(self, deployment_id: UUID, version: VersionInfo, problem: str) -> bool:
        """Note why the incoming version could not be loaded; whether it still is to come."""
        incoming = sa.and_(
            _targets.deployment_id == deployment_id, _targets.version == version.version, _targets.role == "INCOMING"
        )
        return await self._changed(sa.update(target_table).where(incoming).values(problem=problem))

    async def set_state(self, deployment_id: UUID, version: VersionInfo, state: State, message: str) -> bool:
        """Whether the deployment is still there, and of that version, to have a state."""
        serving = sa.and_(_columns.id == deployment_id, _live, _columns.version == version.version)
        values = {"state": state, "state_message": message}
        return await self._changed(sa.update(deployment_table).where(serving).values(values))

    async def _make_primary(
        self, deployment_id: UUID, version: VersionInfo, *, state: State, requested_at: Any
    ) -> None:
        taken = sa.and_(_targets.deployment_id == deployment_id, _targets.version == version.version)
        await self._connection.execute(sa.delete(target_table).where(taken))
        values = {**_values(version), "state": state, "state_message": "", "requested_at": requested_at}
        await self._changed(sa.update(deployment_table).where(_columns.id == deployment_id).values(values))

    async def _remember(self, deployment_id: UUID, version: VersionInfo) -> None:
        await self._put(deployment_id, version, role="FORMER")

    async def _put(self, deployment_id: UUID, version: VersionInfo, *, role: str) -> None:
        fresh = {"role": role, "problem": "", "requested_at": sa.func.now()}
        insert = postgresql.insert(target_table).values(deployment_id=deployment_id, **_values(version), **fresh)
        key = [_targets.deployment_id, _targets.version]
        await self._connection.execute(insert.on_conflict_do_update(index_elements=key, set_=fresh))

    async def _delete_formers(self, deployment_id: UUID) -> None:
        formers = sa.and_(_targets.deployment_id == deployment_id, _targets.role == "FORMER")
        kept = sa.select(_targets.version).where(formers).order_by(_targets.requested_at.desc()).limit(FORMERS_KEPT)
        await self._connection.execute(sa.delete(target_table).where(formers, _targets.version.not_in(kept)))

    async def _changed(self, statement: sa.Update) -> bool:
        return bool((await self._connection.execute(statement)).rowcount)
