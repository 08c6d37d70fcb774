"""One leads at a time, and stops as soon as the lock is lost."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import URL

from inferplane.server.storage.database import asyncpg_dsn
from inferplane.server.storage.leadership import Leadership
from inferplane.server.tasks import ContainedError
from tests.conftest import execute
from tests.support.mesh import until

LOCK = 4711


class Candidate:
    """Would lead; `leads` while it does. `cleanup` is how long its work takes to end, in seconds."""

    def __init__(self, url: URL, cleanup: float = 0) -> None:
        self.url = url
        self.cleanup = cleanup
        self.leads = False
        self.terms = 0
        self.backend = 0

    async def connect(self) -> Any:
        connection = await asyncpg.connect(asyncpg_dsn(self.url), command_timeout=2)
        self.backend = connection.get_server_pid()
        return connection

    async def work(self) -> None:
        self.leads = True
        self.terms += 1
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(self.cleanup)
            self.leads = False


@asynccontextmanager
async def running(*candidates: Candidate) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(Leadership(each.connect, LOCK).run(each.work)) for each in candidates]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_of_several_leads_and_another_takes_over_when_it_ends(database_url: URL) -> None:
    first, second = Candidate(database_url), Candidate(database_url)
    async with running(second):
        async with running(first):
            await until(lambda: first.leads or second.leads)
            leader, follower = (first, second) if first.leads else (second, first)
            assert not follower.leads
            await until(lambda: follower.backend != 0)
            if leader is second:
                await execute(database_url, f"SELECT pg_terminate_backend({second.backend})")
                await until(lambda: first.leads, 30)
        assert not first.leads
        await until(lambda: second.leads, 30)


async def test_the_work_ends_as_soon_as_the_locks_connection_does(database_url: URL) -> None:
    """Another may lead from then on: both see the other's end and beginning in the right order."""
    first, second = Candidate(database_url), Candidate(database_url)
    async with running(first):
        await until(lambda: first.leads)
        async with running(second):
            for _ in range(2):
                leader, follower = (first, second) if first.leads else (second, first)
                await execute(database_url, f"SELECT pg_terminate_backend({leader.backend})")
                async with asyncio.timeout(5):
                    while leader.leads:
                        assert not follower.leads
                        await asyncio.sleep(0)
                await until(lambda: first.leads or second.leads, 30)
                assert first.leads != second.leads


async def test_a_connection_that_answers_no_more_ends_the_work(database_url: URL) -> None:
    leader = Candidate(database_url)
    async with running(leader):
        await until(lambda: leader.leads)
        frozen = leader.backend
        os.kill(frozen, signal.SIGSTOP)
        try:
            await until(lambda: not leader.leads)
        finally:
            os.kill(frozen, signal.SIGCONT)
        await until(lambda: leader.leads)
        assert leader.terms == 2


async def test_work_that_fails_gives_leadership_up_and_its_error_is_the_callers(database_url: URL) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    candidate = Candidate(database_url)
    with pytest.raises(ZeroDivisionError):
        await Leadership(candidate.connect, LOCK).run(fail)
    other = Candidate(database_url)
    async with running(other):
        await until(lambda: other.leads)


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_work_that_would_end_the_process_fails_like_any_other(database_url: URL, end: BaseException) -> None:
    async def work() -> None:
        raise end

    with pytest.raises(ContainedError) as failed:
        await Leadership(Candidate(database_url).connect, LOCK).run(work)
    assert failed.value.__cause__ is end


async def test_nobody_leads_anew_before_its_own_work_has_ended(database_url: URL) -> None:
    slow = Candidate(database_url, cleanup=0.5)
    async with running(slow):
        await until(lambda: slow.leads)
        first_backend = slow.backend
        await execute(database_url, f"SELECT pg_terminate_backend({slow.backend})")
        await until(lambda: not slow.leads)
        assert slow.backend == first_backend
