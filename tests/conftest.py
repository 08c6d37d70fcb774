"""Shared fixtures: a real PostgreSQL for the session, and a migrated database of its own for each test."""

import os

from inferplane.server.processes.grpc_environment import GRPC_ENVIRONMENT

# Servers in this process run as those in workers do; gRPC reads it when it is imported.
os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_ENVIRONMENT["GRPC_EXPERIMENTS"])

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from argon2 import profiles
from pydantic import SecretStr
from sqlalchemy import URL, make_url

from inferplane.server.auth import passwords
from inferplane.server.embedded.postgres import EmbeddedPostgres
from inferplane.server.identity.workloads import ensure_workload_keys
from inferplane.server.keys import MasterKey
from inferplane.server.settings import Settings
from inferplane.server.storage.database import asyncpg_dsn
from inferplane.server.storage.migrate import migrate
from tests.support.loop_thread import LoopThread

TEMPLATE = "inferplane_template"


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(autouse=True, scope="session")
def cheap_passwords() -> Iterator[None]:
    """Hundreds of logins at full strength would take minutes; one test looks at the real parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "PARAMETERS", profiles.CHEAPEST)
        yield


@pytest.fixture(scope="session")
def postgres(loop_thread: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """The owner's URL of a server whose database TEMPLATE is migrated. Durability is off: nobody will miss it."""
    settings = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    server = EmbeddedPostgres(tmp_path_factory.mktemp("pg"), settings=settings)
    loop_thread.run(server.start())
    url = make_url(server.owner_url)
    loop_thread.run(execute(url, f"CREATE DATABASE {TEMPLATE}"))
    loop_thread.run(migrate(url.set(database=TEMPLATE)))
    yield url
    loop_thread.run(server.stop())


@pytest.fixture
def database_url(postgres: URL, loop_thread: LoopThread) -> Iterator[URL]:
    """A clone of the template."""
    name = f"test_{uuid4().hex}"
    loop_thread.run(execute(postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    yield postgres.set(database=name)
    loop_thread.run(execute(postgres, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def keys_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    MasterKey.load_or_create(directory / "master.key")
    ensure_workload_keys(directory)
    return directory


@pytest.fixture
def settings(database_url: URL, keys_dir: Path, tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        database_url=SecretStr(database_url.render_as_string(hide_password=False)),
        master_key_file=keys_dir / "master.key",
        workload_keys_dir=keys_dir,
        log_level="error",
        drain_grace=5,
    )


async def execute(url: URL, statement: str) -> None:
    connection = await asyncpg.connect(asyncpg_dsn(url))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
