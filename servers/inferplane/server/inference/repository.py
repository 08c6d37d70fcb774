"""Inference's SQL."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from inferplane.server.inference.deployments import Deployment, State, VersionInfo
from inferplane.server.inference.tables import deployment as deployment_table
from inferplane.server.storage.pages import Page
from inferplane.server.storage.unit_of_work import UnitOfWork
from inferplane.server.tensors import signature_from_bytes, signature_message

__all__ = ["DeploymentReader", "DeploymentRepository"]

_columns = deployment_table.c
_live = _columns.deleted_at.is_(None)


def _deployment(row: Any) -> Deployment:
    signature = signature_from_bytes(row.signature)
    version = VersionInfo(row.model, row.version, row.digest, row.size, signature, row.label_output)
    deleted = row.deleted_at is not None
    return Deployment(row.id, row.name, version, row.state, row.state_message, row.created_at, row.creator, deleted)


class DeploymentReader:
    """Reads, on any connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, name: str) -> Deployment | None:
        """The deployment of that name."""
        query = sa.select(deployment_table).where(_columns.name == name, _live)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _deployment(row)

    async def visible(self, page: Page, visible: Callable[[str], bool]) -> tuple[list[Deployment], str | None]:
        """One page by name of those that are `visible`, and the sort key to go on after."""
        names = await self._connection.scalars(sa.select(_columns.name).where(_live).order_by(_columns.name))
        wanted = [name for name in names if (page.after is None or name > page.after) and visible(name)]
        chosen = wanted[: page.size]
        query = sa.select(deployment_table).where(_live, _columns.name.in_(chosen)).order_by(_columns.name)
        rows = (await self._connection.execute(query)).all()
        return [_deployment(row) for row in rows], chosen[-1] if len(wanted) > page.size else None

    async def all_with_deleted(self) -> list[Deployment]:
        """Everything, oldest first: what shall be served and what shall be unloaded."""
        rows = await self._connection.execute(sa.select(deployment_table).order_by(_columns.id))
        return [_deployment(row) for row in rows]

    async def delete(self, deployment_id: UUID) -> None:
        """Remove a deleted deployment's row, once Triton has forgotten it."""
        gone = sa.and_(_columns.id == deployment_id, sa.not_(_live))
        await self._connection.execute(sa.delete(deployment_table).where(gone))


class DeploymentRepository(DeploymentReader):
    """Writes, in a unit of work."""

    def __init__(self, unit: UnitOfWork) -> None:
        super().__init__(unit.connection)
        self.record = unit.record

    async def add(self, deployment: Deployment) -> bool:
        """Whether the name was free."""
        version = deployment.version
        statement = postgresql.insert(deployment_table).on_conflict_do_nothing()
        result = await self._connection.execute(
            statement,
            {
                "id": deployment.id,
                "name": deployment.name,
                "model": version.model,
                "version": version.version,
                "digest": version.digest,
                "size": version.size,
                "signature": signature_message(version.signature).SerializeToString(deterministic=True),
                "label_output": version.label_output,
                "state": deployment.state,
                "state_message": deployment.state_message,
                "created_at": deployment.created_at,
                "creator": deployment.creator,
            },
        )
        return bool(result.rowcount)

    async def mark_deleted(self, name: str, at: datetime) -> bool:
        """Whether there was such a deployment."""
        statement = sa.update(deployment_table).where(_columns.name == name, _live).values(deleted_at=at)
        return bool((await self._connection.execute(statement)).rowcount)

    async def set_state(self, deployment_id: UUID, state: State, message: str) -> bool:
        """Whether the deployment is still there to have a state."""
        statement = (
            sa.update(deployment_table)
            .where(_columns.id == deployment_id, _live)
            .values(state=state, state_message=message)
        )
        return bool((await self._connection.execute(statement)).rowcount)
