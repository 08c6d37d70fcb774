"""Keeps the policy snapshot in step with the tables: by notification, and by asking for the revision."""

import asyncio
import contextlib
import time
from collections.abc import Callable

import asyncpg
import structlog
from sqlalchemy import URL

from inferplane.server.policy.snapshot import EMPTY, GrantRow, PolicySnapshot, Route, compile_snapshot
from inferplane.server.storage.database import asyncpg_dsn

__all__ = ["PolicySource"]

log = structlog.get_logger()

CHECK_INTERVAL = 1.0
ANSWER_TIMEOUT = 2.0


class PolicySource:
    """One connection that listens. Losing it is also how a service learns that its database is down.

    `snapshot` is always usable; `confirmed_age` says for how many seconds the tables could not be asked whether
    it is still right.
    """

    def __init__(self, url: URL, role: str | None) -> None:
        self._dsn = asyncpg_dsn(url)
        self._role = role
        self._watchers: list[Callable[[bool], None]] = []
        self._available = False
        self._first = asyncio.Event()
        self._confirmed_at = float("-inf")
        self._wake = asyncio.Event()
        self._subscribers: list[Callable[[], None]] = []
        self.snapshot: PolicySnapshot = EMPTY

    @property
    def confirmed_age(self) -> float:
        """Seconds since the tables last confirmed the snapshot; infinite before the first time."""
        return time.monotonic() - self._confirmed_at

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

    async def _follow(self) -> None:
        settings = {"role": self._role} if self._role else {}
        connection = await asyncpg.connect(
            self._dsn, timeout=ANSWER_TIMEOUT, command_timeout=ANSWER_TIMEOUT, server_settings=settings
        )
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
                routes = await connection.fetch("SELECT * FROM policy.routes")
            self.snapshot = compile_snapshot(
                revision, (GrantRow(**dict(row)) for row in grants), (Route(**dict(row)) for row in routes)
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
