"""Mutations: whole or not at all, recorded, and safe to repeat."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy import URL
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from inferplane.server.errors import InferplaneError
from inferplane.server.keys import MasterKey
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database
from inferplane.server.storage.unit_of_work import UnitOfWork, UnitOfWorkFactory
from tests.conftest import execute

ALICE = Actor("users/alice", "request-1")


@pytest.fixture
async def begin(settings: Settings) -> AsyncIterator[UnitOfWorkFactory]:
    database = Database(settings, ServiceName.AUTH)
    yield UnitOfWorkFactory(database, MasterKey(bytes(32)))
    await database.close()


async def add_user(unit: UnitOfWork, name: str) -> None:
    statement = "INSERT INTO user_account VALUES (:name, 'hash', now())"
    await unit.connection.execute(sa.text(statement), {"name": name})
    unit.record("user.create", f"users/{name}")


async def count(url: URL, table: str) -> int:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        found = await connection.scalar(sa.text(f"SELECT count(*) FROM {table}"))  # noqa: S608 - names of this file
    await engine.dispose()
    return int(found or 0)


async def test_what_is_committed_is_there_with_its_audit_event(begin: UnitOfWorkFactory, database_url: URL) -> None:
    async with begin(ALICE) as unit:
        await add_user(unit, "bob")
        await unit.commit()
    assert await count(database_url, "auth.user_account") == 1
    assert await count(database_url, "reporting.audit_event") == 1


async def test_leaving_without_a_commit_changes_nothing(begin: UnitOfWorkFactory, database_url: URL) -> None:
    async with begin(ALICE) as unit:
        await add_user(unit, "bob")
    assert await count(database_url, "auth.user_account") == 0


async def test_without_an_audit_event_nothing_is_committed(begin: UnitOfWorkFactory, database_url: URL) -> None:
    async with begin(ALICE) as unit:
        await unit.connection.execute(sa.text("INSERT INTO user_account VALUES ('bob', 'hash', now())"))
        with pytest.raises(RuntimeError, match="audit"):
            await unit.commit()
    assert await count(database_url, "auth.user_account") == 0


async def test_where_the_audit_cannot_be_written_nothing_is(begin: UnitOfWorkFactory, database_url: URL) -> None:
    await execute(database_url, "REVOKE INSERT ON reporting.audit_event FROM inferplane_auth")
    async with begin(ALICE) as unit:
        await add_user(unit, "bob")
        with pytest.raises(ProgrammingError, match="permission denied"):
            await unit.commit()
    assert await count(database_url, "auth.user_account") == 0


async def claim(begin: UnitOfWorkFactory, actor: Actor, key: str, body: bytes, answer: bytes) -> bytes:
    async with begin(actor) as unit:
        earlier = await unit.claim("/s/m", key, body)
        if earlier is not None:
            return earlier
        unit.record("x", "y")
        await unit.commit(answer)
    return answer


async def test_of_concurrent_claims_of_one_key_all_get_one_answer(begin: UnitOfWorkFactory) -> None:
    answers = await asyncio.gather(*(claim(begin, ALICE, "k", b"body", bytes([n])) for n in range(6)))
    assert len(set(answers)) == 1


async def test_a_key_is_its_callers_own(begin: UnitOfWorkFactory) -> None:
    assert await claim(begin, ALICE, "k", b"body", b"alice's") == b"alice's"
    assert await claim(begin, Actor("users/bob"), "k", b"body", b"bob's") == b"bob's"


async def test_a_claim_that_was_not_committed_is_free_again(begin: UnitOfWorkFactory) -> None:
    async with begin(ALICE) as unit:
        assert await unit.claim("/s/m", "k", b"body") is None
    assert await claim(begin, ALICE, "k", b"another body", b"answer") == b"answer"


async def test_stored_answers_cannot_be_read_in_the_table(begin: UnitOfWorkFactory, database_url: URL) -> None:
    await claim(begin, ALICE, "k", b"a secret body", b"a secret answer")
    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        query = "SELECT fingerprint || answer FROM auth.idempotency_record"
        stored = await connection.scalar(sa.text(query))
    await engine.dispose()
    assert b"secret" not in bytes(stored or b"secret")


@pytest.mark.parametrize("key", ["k" * 129, "line\nbreak", "nul\0"])
async def test_a_bad_key_is_refused(begin: UnitOfWorkFactory, key: str) -> None:
    with pytest.raises(InferplaneError):
        await claim(begin, ALICE, key, b"", b"")
