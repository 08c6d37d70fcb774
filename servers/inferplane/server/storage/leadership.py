"""Who leads: of all processes that would do a piece of work, the one whose connection holds an advisory lock.

PostgreSQL gives the lock to another as soon as it takes that connection for gone, which may be a moment before the
leader hears of it. So the leader stops at once when its connection ends or answers no more, and the next one begins
only when the one before must have stopped.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import structlog

from inferplane.server.tasks import start_task

__all__ = ["Leadership"]

log = structlog.get_logger()

INTERVAL = 1.0
"""Seconds between tries to take the lock, and between questions whether the connection still answers."""
ANSWER_TIMEOUT = 2.0
TAKEOVER = INTERVAL + ANSWER_TIMEOUT + 0.5
"""Seconds from taking a lock that another held to the work: by then the other has found out that it lost it."""
START = 0.5
"""The same where nobody was seen to hold it."""

Connect = Callable[[], Awaitable[asyncpg.Connection]]
Work = Callable[[], Awaitable[None]]


class Leadership:
    """One lock. `connect` makes a connection outside of any pool, as the lock lives and dies with it."""

    def __init__(self, connect: Connect, lock: int) -> None:
        self._connect = connect
        self._lock = lock
        self._pause = START

    async def run(self, work: Work) -> None:
        """Do `work` whenever this process leads, until cancelled; work that ends or fails gives leadership up.

        `work` is cancelled, and has ended, before this process tries to lead again.
        """
        while True:
            try:
                await self._lead(work)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("leadership_paused", error=type(error).__name__)
            await asyncio.sleep(INTERVAL)

    async def _lead(self, work: Work) -> None:
        connection = await self._connect()
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        try:
            # Polled: waiting inside PostgreSQL would outlast the connection's command timeout.
            pause = self._pause
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", self._lock):
                pause = TAKEOVER
                await asyncio.sleep(INTERVAL)
            # Whoever leads or led before, from the second time on somebody may.
            self._pause = TAKEOVER
            await _first_to_end(_after(pause, work), lost.wait(), _answers(connection))
        finally:
            connection.terminate()


async def _after(pause: float, work: Work) -> None:
    await asyncio.sleep(pause)
    await work()


async def _answers(connection: asyncpg.Connection) -> None:
    # A connection that is cut without a word is not terminated until somebody writes to it.
    while True:
        await asyncio.sleep(INTERVAL)
        await connection.fetchval("SELECT 1", timeout=ANSWER_TIMEOUT)


async def _first_to_end(*parts: Any) -> None:
    """Run all until one ends; cancel the others, wait for them, and raise what the first one raised."""
    tasks = [start_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
