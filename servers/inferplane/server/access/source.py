"""Keeps the policy snapshot in step with the tables: by notification, and by asking for the revision."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import asyncpg
import structlog
from sqlalchemy import URL

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.routes import read_routes
from inferplane.server.access.snapshot import EMPTY, GrantRow, Grants, Part, PolicySnapshot, Route
from inferplane.server.errors import InferplaneError
from inferplane.server.settings import ServiceName
from inferplane.server.storage.database import lone_connection
from inferplane.server.storage.schema import SchemaVersionError, check_not_newer

__all__ = ["PolicySource", "parts_of"]

log = structlog.get_logger()

CHECK_INTERVAL = 1.0
PATIENCE = 1.0
"""Seconds that a call waits at most for the snapshot to catch up with the tables: within as many it does by itself,
where the database answers."""
NEVER = float("-inf")


async def _grants(connection: asyncpg.Connection, _present: PolicySnapshot) -> Grants:
    rows = await connection.fetch("SELECT subject, role, scope FROM policy.grants")
    return Grants(GrantRow(row["subject"], row["role"], row["scope"]) for row in rows)


async def _deployments(connection: asyncpg.Connection, present: PolicySnapshot) -> Mapping[str, Route]:
    return await read_routes(connection, present.routes)


async def _revoked(connection: asyncpg.Connection, _present: PolicySnapshot) -> frozenset[str]:
    return frozenset(row["session"] for row in await connection.fetch("SELECT session FROM policy.revoked"))


_FETCH: Mapping[Part, tuple[str, Callable[[asyncpg.Connection, PolicySnapshot], Awaitable[Any]]]] = {
    Part.GRANTS: ("grants", _grants),
    Part.DEPLOYMENTS: ("routes", _deployments),
    Part.REVOKED: ("revoked", _revoked),
}
"""Each part's field in the snapshot, and how it is read and compiled, given the present snapshot."""


def parts_of(service: ServiceName) -> Collection[Part]:
    """The parts of policy that a service decides by."""
    return tuple(Part) if service is ServiceName.INFERENCE else (Part.GRANTS, Part.REVOKED)


class PolicySource:
    """One connection that listens. Losing it is also how a service learns that its database is down.

    Only `parts` are followed, and a part is read again when its own revision has moved. A snapshot is used for up to
    `max_staleness` seconds after the tables last confirmed it, and not at all once the database has been migrated to a
    version that this release cannot work with: who may do what stands there in a form of which it knows nothing.
    """

    def __init__(self, url: URL, role: str | None, max_staleness: float, parts: Collection[Part] = tuple(Part)) -> None:
        self._max_staleness = max_staleness
        self._parts = parts
        self._url = url
        self._role = role
        self._watchers: list[Callable[[bool], None]] = []
        self._available = False
        self._confirmed_at = NEVER
        self._confirmed = asyncio.Event()
        self._wake = asyncio.Event()
        self._subscribers: list[tuple[Part, Callable[[], None]]] = []
        self.snapshot: PolicySnapshot = EMPTY

    def current(self) -> PolicySnapshot:
        """The snapshot to decide by; POLICY_STALE if it is too old to, or this release."""
        if time.monotonic() - self._confirmed_at > self._max_staleness:
            raise InferplaneError(ErrorReason.ERROR_REASON_POLICY_STALE, retry_after=1.0)
        return self.snapshot

    def on_availability(self, callback: Callable[[bool], None]) -> None:
        """Call `callback` when the database comes or goes."""
        self._watchers.append(callback)

    async def first_snapshot(self, timeout: float = 15.0) -> None:
        """Wait, in seconds, for the first snapshot; TimeoutError if the database does not answer."""
        async with asyncio.timeout(timeout):
            await self._confirmation_after(NEVER)

    async def catch_up(self) -> None:
        """Wait until the snapshot has all that is in the tables now, but not for a database that is away."""
        asked_at = time.monotonic()
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._confirmation_after(asked_at)

    def on_refresh(self, part: Part, callback: Callable[[], None]) -> None:
        """Call `callback` whenever a snapshot has `part` anew."""
        self._subscribers.append((part, callback))

    async def run(self) -> None:
        """Follow the tables until cancelled, reconnecting for ever."""
        while True:
            try:
                await self._follow()
            except SchemaVersionError as error:
                if self._confirmed_at != NEVER:
                    log.critical("schema_too_new", error=str(error))
                self._confirmed_at = NEVER
                self._set_available(False)
                await asyncio.sleep(CHECK_INTERVAL)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if self._available:
                    log.warning("policy_source_lost", error=type(error).__name__)
                self._set_available(False)
                await asyncio.sleep(0.25)

    async def _follow(self) -> None:
        connection = await lone_connection(self._url, self._role, "policy")
        try:
            connection.add_termination_listener(lambda _: self._lost())
            await connection.add_listener("policy_changed", lambda *_: self._wake.set())
            while True:
                self._wake.clear()
                await self._refresh(connection)
                self._set_available(True)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_INTERVAL):
                        await self._wake.wait()
        finally:
            connection.terminate()

    async def _refresh(self, connection: asyncpg.Connection) -> None:
        asked_at = time.monotonic()
        await check_not_newer(connection)
        if self._moved(await self._revisions(connection)):
            # Revisions and rows are read in one snapshot of the database, or a change in between would be lost.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                revisions = await self._revisions(connection)
                moved = self._moved(revisions)
                read = [(_FETCH[part][0], await _FETCH[part][1](connection, self.snapshot)) for part in moved]
            self.snapshot = replace(self.snapshot, revisions=revisions, **dict(read))
            for part, callback in self._subscribers:
                if part in moved:
                    callback()
        self._confirmed_at = asked_at
        self._confirmed.set()
        self._confirmed = asyncio.Event()

    async def _confirmation_after(self, moment: float) -> None:
        while self._confirmed_at <= moment:
            await self._confirmed.wait()

    async def _revisions(self, connection: asyncpg.Connection) -> Mapping[Part, int]:
        rows = await connection.fetch("SELECT part, revision FROM policy.revision WHERE part = ANY($1)", self._parts)
        return {Part(row["part"]): row["revision"] for row in rows}

    def _moved(self, revisions: Mapping[Part, int]) -> list[Part]:
        return [part for part in revisions if revisions[part] != self.snapshot.revisions.get(part)]

    def _lost(self) -> None:
        self._set_available(False)
        self._wake.set()

    def _set_available(self, available: bool) -> None:
        if available != self._available:
            self._available = available
            for callback in self._watchers:
                callback(available)
