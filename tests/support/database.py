"""What stands in the database."""

from typing import Any

import asyncpg
from sqlalchemy import URL

from inferplane.reporting.v1.audit_event_pb2 import AuditEvent
from inferplane.server.storage.database import asyncpg_dsn


async def rows(url: URL, query: str, *arguments: Any) -> list[Any]:
    """The rows that `query` finds, as the owner sees them."""
    connection = await asyncpg.connect(asyncpg_dsn(url))
    try:
        return list(await connection.fetch(query, *arguments))
    finally:
        await connection.close()


async def audit_events(url: URL, action: str) -> list[AuditEvent]:
    """The audit events of one action, oldest first."""
    query = "SELECT event FROM reporting.audit_event WHERE action = $1 ORDER BY id"
    return [AuditEvent.FromString(row["event"]) for row in await rows(url, query, action)]
