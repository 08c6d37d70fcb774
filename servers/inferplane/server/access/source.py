"""Keeps the policy snapshot in step with the tables: by notification, and by asking for the revision."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

import asyncpg
import structlog
from sqlalchemy import URL

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.snapshot import EMPTY, GrantRow, PolicySnapshot, Route, Target, compile_snapshot
from inferplane.server.errors import InferplaneError
from inferplane.server.storage.database import asyncpg_dsn
from inferplane.server.tensors import signature_from_bytes

__all__ = ["PolicySource"]

log = structlog.get_logger()

CHECK_INTERVAL = 1.0
ANSWER_TIMEOUT = 2.0


_TARGET = "deployment, model, version, digest, signature, label_output"


def _target(row: asyncpg.Record) -> Target:
    signature = signature_from_bytes(row["signature"])
    return Target(row["model"], row["version"], row["digest"], signature, row["label_output"])


def _routes(rows: Iterable[asyncpg.Record], others: Iterable[asyncpg.Record]) -> Iterator[Route]:
    beside: dict[str, list[Target]] = {}
    for row in others:
        beside.setdefault(row["deployment"], []).append(_target(row))
    for row in rows:
        name = row["deployment"]
        yield Route(name, _target(row), row["ready"], tuple(beside.get(name, ())))


class PolicySource:
    """One connection that listens. Losing it is also how a service learns that its database is down.

    A snapshot is used for up to `max_staleness` seconds after the tables last confirmed it.
    """

    def __init__(self, url: URL, role: str | None, max_staleness: float) -> None:
        self._max_staleness = max_staleness
        self._dsn = asyncpg_dsn(url)
        self._role = role
        self._watchers: list[Callable[[bool], None]] = []
        self._available = False
        self._first = asyncio.Event()
        self._confirmed_at = float("-inf")
        self._wake = asyncio.Event()
        self._subscribers: list[Callable[[], None]] = []
        self.snapshot: PolicySnapshot = EMPTY

    def current(self) -> PolicySnapshot:
        """The snapshot to decide by; POLICY_STALE if it is too old to."""
        if time.monotonic() - self._confirmed_at > self._max_staleness:
            raise InferplaneError(ErrorReason.ERROR_REASON_POLICY_STALE, retry_after=1.0)
        return self.snapshot

    def on_availability(self, callback: Callable[[bool], None]) -> None:
        """Call `callback` when the database comes or goes."""
        self._watchers.append(callback)

    async def first_snapshot(self, timeout: float = 15.0) -> None:
        """Wait, in seconds, for the first snapshot; TimeoutError if the database does not answer."""
        await asyncio.wait_for(self._first.wait(), timeout)

    def on_refresh(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each new snapshot."""
        self._subscribers.append(callback)

    async def run(self) -> None:
        """Follow the tables until cancelled, reconnecting for ever."""
        while True:
            try:
                await self._follow()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if self._available:
                    log.warning("policy_source_lost", error=type(error).__name__)
                self._set_available(False)
                await asyncio.sleep(0.25)

    async def connect(self) -> asyncpg.Connection:
        """A connection outside the pool, for listening and for session locks; the caller closes it."""
        settings = {"role": self._role} if self._role else {}
        return await asyncpg.connect(
            self._dsn, timeout=ANSWER_TIMEOUT, command_timeout=ANSWER_TIMEOUT, server_settings=settings
        )

    async def _follow(self) -> None:
        connection = await self.connect()
        try:
            connection.add_termination_listener(lambda _: self._lost())
            await connection.add_listener("policy_changed", lambda *_: self._wake.set())
            while True:
                self._wake.clear()
                await self._refresh(connection)
                self._set_available(True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), CHECK_INTERVAL)
        finally:
            connection.terminate()

    async def _refresh(self, connection: asyncpg.Connection) -> None:
        asked_at = time.monotonic()
        revision = await connection.fetchval("SELECT revision FROM policy.revision")
        if revision != self.snapshot.revision:
            # Revision and rows are read in one snapshot of the database, or a change in between would be lost.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                revision = await connection.fetchval("SELECT revision FROM policy.revision")
                grants = await connection.fetch("SELECT subject, role, scope FROM policy.grants")
                routes = await connection.fetch(f"SELECT {_TARGET}, ready FROM policy.routes")  # noqa: S608 - a constant
                others = await connection.fetch(f"SELECT {_TARGET} FROM policy.other_targets")  # noqa: S608 - a constant
            self.snapshot = compile_snapshot(
                revision, (GrantRow(**dict(row)) for row in grants), _routes(routes, others)
            )
            for callback in self._subscribers:
                callback()
        self._confirmed_at = asked_at
        self._first.set()

    def _lost(self) -> None:
        self._set_available(False)
        self._wake.set()

    def _set_available(self, available: bool) -> None:
        if available != self._available:
            self._available = available
            for callback in self._watchers:
                callback(available)
