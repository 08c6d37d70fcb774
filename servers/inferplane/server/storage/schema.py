"""The schema versions that this release works with. Apart from the migrations: services need not load alembic."""

import asyncpg
from sqlalchemy import URL

from inferplane.server.storage.database import asyncpg_dsn

__all__ = ["BREAK", "MIN_SCHEMA", "SCHEMA_VERSION", "SchemaVersionError", "check_not_newer", "check_version"]

SCHEMA_VERSION = "0008"
"""The newest that this release knows, and what it migrates to. Versions sort as text."""
MIN_SCHEMA = "0007"
"""The oldest that this release works with."""

BREAK = "0007"
"""The newest version that services of releases before it cannot work with: its migration has them all stopped."""


class SchemaVersionError(Exception):
    """The database and this release do not work with each other; migrate the one or replace the other."""


async def check_version(url: URL) -> None:
    """Raise SchemaVersionError unless this release works with the database.

    A newer database says itself which releases may go on, so that old workers run through an upgrade.
    """
    connection = await asyncpg.connect(asyncpg_dsn(url), timeout=5)
    try:
        version = await _value(connection, "public.alembic_version", "version_num")
        minimum = await _value(connection, "public.schema_compatibility", "minimum")
    finally:
        await connection.close()
    if version is None or version < MIN_SCHEMA:
        raise SchemaVersionError(
            f"the database is at version {version or 'none'}, this release needs {MIN_SCHEMA}:"
            " run `inferplane db migrate`"
        )
    if version > SCHEMA_VERSION and (minimum is None or minimum > SCHEMA_VERSION):
        raise SchemaVersionError(
            f"the database is at version {version}, which needs a release that knows version {minimum or version};"
            f" this one knows {SCHEMA_VERSION}: install a newer release"
        )


async def check_not_newer(connection: asyncpg.Connection) -> None:
    """Raise SchemaVersionError where the database has been migrated to what only newer releases work with."""
    minimum = await connection.fetchval("SELECT minimum FROM public.schema_compatibility")
    if minimum is not None and minimum > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database needs a release that knows version {minimum}, this one knows {SCHEMA_VERSION}:"
            " install a newer release"
        )


async def _value(connection: asyncpg.Connection, table: str, column: str) -> str | None:
    """What a table of one row and one column holds; None where there is no such table."""
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table):
        return None
    value: str | None = await connection.fetchval(f"SELECT {column} FROM {table}")  # noqa: S608 - constants of this file
    return value
