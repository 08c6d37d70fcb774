"""Migrations: run by the owner under an advisory lock; services only check the version."""

import asyncio
from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import URL

from inferplane.server.storage.database import asyncpg_dsn

__all__ = ["SchemaVersionError", "check_version", "head", "migrate"]

MIGRATION_LOCK = 0x696E666572
"""Any fixed number; everybody who migrates takes this advisory lock."""


class SchemaVersionError(Exception):
    """The database is not at this release's version; run `inferplane db migrate` as its owner."""


def _config(url: URL) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = url
    return config


def head() -> str:
    """The version that this release needs."""
    script = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    version = script.get_current_head()
    if version is None:
        raise SchemaVersionError("this installation has no migrations")
    return version


async def migrate(url: URL) -> str:
    """Bring the database to this release's version, as its owner; answers that version."""
    await asyncio.to_thread(command.upgrade, _config(url), "head")
    return head()


async def check_version(url: URL) -> None:
    """Raise SchemaVersionError unless the database is at this release's version."""
    connection = await asyncpg.connect(asyncpg_dsn(url), timeout=5)
    try:
        present = await connection.fetchval("SELECT to_regclass('public.alembic_version') IS NOT NULL")
        version = await connection.fetchval("SELECT version_num FROM public.alembic_version") if present else None
    finally:
        await connection.close()
    if version != head():
        raise SchemaVersionError(
            f"the database is at version {version or 'none'}, this release needs {head()}: run `inferplane db migrate`"
        )
