"""The schema version that this release needs. Apart from the migrations, so that services need not load alembic."""

import asyncpg
from sqlalchemy import URL

from inferplane.server.storage.database import asyncpg_dsn

__all__ = ["SCHEMA_VERSION", "SchemaVersionError", "check_version"]

SCHEMA_VERSION = "0006"


class SchemaVersionError(Exception):
    """The database is not at this release's version; run `inferplane db migrate` as its owner."""


async def check_version(url: URL) -> None:
    """Raise SchemaVersionError unless the database is at this release's version."""
    connection = await asyncpg.connect(asyncpg_dsn(url), timeout=5)
    try:
        present = await connection.fetchval("SELECT to_regclass('public.alembic_version') IS NOT NULL")
        version = await connection.fetchval("SELECT version_num FROM public.alembic_version") if present else None
    finally:
        await connection.close()
    if version != SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database is at version {version or 'none'}, this release needs {SCHEMA_VERSION}:"
            " run `inferplane db migrate`"
        )
