"""Callers take turns at a service's connections."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from inferplane.server.errors import InferplaneError
from inferplane.server.rpc.errors import reason_name
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage import database as database_module
from inferplane.server.storage.database import Database, works_for
from tests.support.mesh import until


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """With four connections, of which one caller has three at most."""
    database = Database(settings.model_copy(update={"database_pool_size": 2}), ServiceName.AUTH)
    yield database
    await database.close()


class Holder:
    """A caller whose transactions go on until they are let go."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._go = asyncio.Event()
        self.inside = 0
        self.tasks: list[asyncio.Task[None]] = []

    def begin(self, count: int) -> None:
        self.tasks += [asyncio.create_task(self._hold()) for _ in range(count)]

    async def end(self) -> None:
        self._go.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _hold(self) -> None:
        works_for(lambda: self._name)
        async with self._database.transaction():
            self.inside += 1
            await self._go.wait()


async def test_one_caller_never_has_all_connections(database: Database) -> None:
    flood, other = Holder(database, "a"), Holder(database, "b")
    flood.begin(20)
    await until(lambda: flood.inside == 3)
    other.begin(1)
    await until(lambda: other.inside == 1)
    assert flood.inside == 3
    await flood.end()
    await other.end()


async def test_a_caller_has_no_more_than_so_many_waiting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "WAITING_EACH", 5)
    database = Database(settings.model_copy(update={"database_pool_size": 2}), ServiceName.AUTH)
    flood = Holder(database, "a")
    flood.begin(3 + 5 + 1)
    await until(lambda: any(task.done() for task in flood.tasks))
    (refused,) = (task.exception() for task in flood.tasks if task.done())
    assert isinstance(refused, InferplaneError)
    assert reason_name(refused.reason) == "OVERLOADED"
    await flood.end()
    await database.close()


async def test_two_who_fill_the_waiting_room_do_not_keep_out_a_third(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "WAITING", 20)
    monkeypatch.setattr(database_module, "WAITING_EACH", 10)
    database = Database(settings.model_copy(update={"database_pool_size": 2}), ServiceName.AUTH)
    floods = [Holder(database, name) for name in "ab"]
    for flood in floods:
        flood.begin(14)
    await until(lambda: database._turns.waiting == 20)
    third = Holder(database, "c")
    third.begin(1)
    await until(lambda: any(task.done() for flood in floods for task in flood.tasks))
    assert not third.tasks[0].done()
    for flood in floods:
        await flood.end()
    await until(lambda: third.inside == 1)
    await third.end()
    await database.close()


async def test_who_waits_too_long_is_told_that_others_were_before(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "POOL_TIMEOUT", 0.2)
    flood = Holder(database, "a")
    flood.begin(4)
    await until(lambda: any(task.done() for task in flood.tasks))
    (late,) = (task.exception() for task in flood.tasks if task.done())
    assert isinstance(late, InferplaneError)
    assert reason_name(late.reason) == "OVERLOADED"
    await flood.end()
