"""What deployments with signatures of the largest size cost those who follow them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest
from sqlalchemy import URL

from inferplane.server.access.source import PolicySource
from inferplane.server.inference import repository
from inferplane.server.inference.deployments import Deployments, VersionInfo
from inferplane.server.inference.repository import DeploymentReader, DeploymentRepository
from inferplane.server.keys import MasterKey
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database, asyncpg_dsn
from inferplane.server.storage.database import database_url as url_of
from inferplane.server.storage.pages import Page
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory
from inferplane.server.tensors import MAX_SIGNATURE_BYTES, Signature, TensorSpec, signature_message
from tests.conftest import execute
from tests.support.mesh import until
from tests.support.timing import processor_time

DEPLOYMENTS = 200
STALL = 0.2
"""Seconds of its processor that a look may cost the loop. Parsing all signatures takes 0.7 s."""


def signature(tensors: int, name: int = 20) -> Signature:
    """So many inputs and outputs, whose names have so many characters."""
    specs = tuple(TensorSpec(f"{number}".ljust(name, "x"), "FP32", (-1,)) for number in range(tensors))
    return Signature(specs, specs)


LARGEST = signature(780)


def version(number: int = 1, shown: Signature = LARGEST) -> VersionInfo:
    return VersionInfo("m", number, f"sha256:{number:064}", 4, shown, "")


def stored(shown: Signature) -> bytes:
    return signature_message(shown).SerializeToString()


async def fill(url: URL, deployments: int, shown: bytes) -> None:
    """Let there be `m0`, `m1` and so on, each with a version of its own."""
    connection = await asyncpg.connect(asyncpg_dsn(url))
    try:
        await connection.execute(
            """
            INSERT INTO inference.deployment (id, name, model, version, digest, size, signature, label_output, state,
                state_message, created_at, creator)
            SELECT gen_random_uuid(), 'm' || i, 'm', i + 1, 'sha256:' || lpad(i::text, 64, '0'), 4, $2, '', 'FAILED',
                '', now(), 'users/alice' FROM generate_series(0, $1 - 1) AS i
            """,
            deployments,
            shown,
        )
    finally:
        await connection.close()


@asynccontextmanager
async def following(settings: Settings) -> AsyncIterator[PolicySource]:
    source = PolicySource(*url_of(settings, ServiceName.INFERENCE), 300)
    task = asyncio.create_task(source.run())
    try:
        await source.first_snapshot()
        yield source
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    database = Database(settings, ServiceName.INFERENCE)
    yield database
    await database.close()


async def create(database: Database, name: str, shown: VersionInfo) -> None:
    async with UnitOfWorkFactory(database, MasterKey(bytes(32)))(Actor("users/alice")) as unit:
        await Deployments().create(DeploymentRepository(unit), name, shown, "users/alice")
        await unit.commit()


def test_the_largest_signature_is_the_one_that_is_timed() -> None:
    assert MAX_SIGNATURE_BYTES - 1024 < len(stored(LARGEST)) <= MAX_SIGNATURE_BYTES


async def test_a_change_of_one_of_200_deployments_costs_the_loop_of_who_follows_them_little(
    settings: Settings, database_url: URL
) -> None:
    await fill(database_url, DEPLOYMENTS, stored(LARGEST))
    async with following(settings) as source:
        with processor_time() as spent:
            await execute(database_url, "UPDATE inference.deployment SET state = 'READY' WHERE name = 'm7'")
            await until(lambda: source.snapshot.routes["m7"].ready)
            took = spent()
        assert len(source.snapshot.routes) == DEPLOYMENTS
        assert all(route.target.signature == LARGEST for route in source.snapshot.routes.values())
    assert took < STALL, f"{took:.3f} s"


async def test_a_look_of_the_reconciler_at_200_deployments_costs_its_loop_little(
    database: Database, database_url: URL
) -> None:
    await fill(database_url, DEPLOYMENTS, stored(LARGEST))
    async with database.transaction() as connection:
        with processor_time() as spent:
            deployments = await DeploymentReader(connection).all_with_deleted()
            took = spent()
    assert len(deployments) == DEPLOYMENTS
    assert took < STALL, f"{took:.3f} s"


async def test_a_version_is_described_before_it_is_loaded(database: Database) -> None:
    await create(database, "m", version())
    async with database.transaction() as connection:
        reader = DeploymentReader(connection)
        (seen,) = await reader.all_with_deleted()
        assert seen.version.signature is None
        described = await reader.with_signature(seen, seen.version)
        assert described is not None
        assert described.signature == LARGEST
        assert await reader.with_signature(seen, version(2)) is None


async def test_a_version_that_takes_over_keeps_its_signature(database: Database) -> None:
    other = Signature((), (TensorSpec("y", "FP32", ()),))
    await create(database, "m", version())
    units = UnitOfWorkFactory(database, MasterKey(bytes(32)))
    async with units(Actor("users/alice")) as unit:
        store = DeploymentRepository(unit)
        (deployment,) = await store.all_with_deleted()
        await store.add_incoming(deployment.id, version(2, other))
        (deployment,) = await store.all_with_deleted()
        assert deployment.incoming is not None
        assert await store.promote("m", deployment.incoming.version)
        promoted = await store.get("m")
        store.record("deployment.replaced", "deployments/m")
        await unit.commit()
    assert promoted is not None
    assert promoted.version.signature == other
    async with database.transaction() as connection:
        former = await DeploymentReader(connection).with_signature(promoted, replace(version(), signature=None))
    assert former is not None
    assert former.signature == LARGEST


async def test_signatures_from_before_there_was_a_limit_are_still_read(settings: Settings, database_url: URL) -> None:
    large = signature(1024, name=256)
    await fill(database_url, 3, stored(large))
    async with following(settings) as source:
        assert [route.target.signature == large for route in source.snapshot.routes.values()] == [True] * 3


async def test_versions_that_differ_have_their_own_signatures(settings: Settings, database: Database) -> None:
    signatures = {f"m{count}": signature(count) for count in range(1, 40)}
    for count, (name, shown) in enumerate(signatures.items(), 1):
        await create(database, name, version(count, shown))
    async with following(settings) as source:
        read = {name: route.target.signature for name, route in source.snapshot.routes.items()}
    assert read == signatures


async def test_a_page_of_deployments_with_large_signatures_is_shorter(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        await create(database, name, version())
    monkeypatch.setattr(repository, "PAGE_BYTES", 4 * MAX_SIGNATURE_BYTES)
    pages: list[list[str]] = []
    after: str | None = None
    while not pages or after is not None:
        async with database.transaction() as connection:
            page, after = await DeploymentReader(connection).visible(Page(100, after), lambda _name: True)
        pages.append([deployment.name for deployment in page])
        assert all(deployment.version.signature == LARGEST for deployment in page)
    assert pages == [["a", "b"], ["c"]]
