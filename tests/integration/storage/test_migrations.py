"""The schema and what the code believes of it."""

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, MetaData
from sqlalchemy.ext.asyncio import create_async_engine

from inferplane.server.artifact import tables as artifact
from inferplane.server.auth import tables as auth
from inferplane.server.inference import tables as inference
from inferplane.server.reporting import tables as reporting
from inferplane.server.storage import audit, migrate
from inferplane.server.storage.schema import SCHEMA_VERSION

MIGRATIONS = Path(migrate.__file__).parent / "migrations"


def test_the_version_that_services_ask_for_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == SCHEMA_VERSION


async def test_the_tables_are_those_that_the_repositories_describe(database_url: URL) -> None:
    described = MetaData()
    for metadata in (auth.metadata, artifact.metadata, inference.metadata, reporting.metadata, audit.metadata):
        for table in metadata.tables.values():
            table.to_metadata(described)

    def differences(connection: Connection) -> list[object]:
        # Indexes and the policy's revision stand in the migrations alone, and the idempotency tables have one
        # description for four.
        def compared(_object: object, name: str | None, kind: str, *_rest: object) -> bool:
            return kind != "index" and name not in ("idempotency_record", "alembic_version", "revision")

        options = {"include_schemas": True, "include_object": compared}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), described))

    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_migrating_again_changes_nothing(database_url: URL) -> None:
    assert await migrate.migrate(database_url) == SCHEMA_VERSION
