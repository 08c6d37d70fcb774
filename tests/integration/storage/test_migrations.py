"""The schema and what the code believes of it."""

import ast
import asyncio
import inspect
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Column, Connection, Engine, MetaData, Text, event
from sqlalchemy.ext.asyncio import create_async_engine
from structlog.testing import capture_logs

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.source import PolicySource
from inferplane.server.artifact import repository as artifact_repository
from inferplane.server.artifact import tables as artifact
from inferplane.server.artifact import upload_repository
from inferplane.server.auth import repository as auth_repository
from inferplane.server.auth import tables as auth
from inferplane.server.errors import InferplaneError
from inferplane.server.inference import repository as inference_repository
from inferplane.server.inference import tables as inference
from inferplane.server.reporting import repository as reporting_repository
from inferplane.server.reporting import tables as reporting
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage import audit, migrate
from inferplane.server.storage.database import Database, asyncpg_dsn
from inferplane.server.storage.database import database_url as url_of
from inferplane.server.storage.schema import MIN_SCHEMA, SCHEMA_VERSION, SchemaVersionError, check_version
from tests.conftest import execute
from tests.support.database import audit_events, rows
from tests.support.mesh import running_mesh, until

MIGRATIONS = Path(migrate.__file__).parent / "migrations"
SERVER = Path(migrate.__file__).parents[1]
ALL_COLUMNS = re.compile(r"\b(select|returning)\s+(all\s+|distinct\s+)?([^;]*?,\s*)?(\w+\.)?\*", re.IGNORECASE)
REPOSITORIES = (artifact_repository, upload_repository, auth_repository, inference_repository, reporting_repository)


def test_the_version_that_services_ask_for_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == SCHEMA_VERSION


async def test_the_tables_are_those_that_the_repositories_describe(database_url: URL) -> None:
    described = MetaData()
    for metadata in (auth.metadata, artifact.metadata, inference.metadata, reporting.metadata, audit.metadata):
        for table in metadata.tables.values():
            table.to_metadata(described)

    def differences(connection: Connection) -> list[object]:
        # Indexes, the policy's revisions and the compatibility stand in the migrations alone, and the idempotency
        # tables have one description for four.
        def compared(_object: object, name: str | None, kind: str, *_rest: object) -> bool:
            return kind != "index" and name not in (
                "idempotency_record",
                "alembic_version",
                "schema_compatibility",
                "revision",
            )

        options = {"include_schemas": True, "include_object": compared}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), described))

    engine = create_async_engine(database_url)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


def test_views_and_statements_name_their_columns() -> None:
    """A view keeps what `*` stood for when it was made, and a statement would meet columns that come later."""
    parsed = [ast.parse(file.read_text()) for file in SERVER.rglob("*.py")]
    nodes = [node for tree in parsed for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [node.value for node in nodes if isinstance(node.value, str)]
    assert sum("CREATE VIEW" in text for text in texts) >= 4
    assert [text for text in texts if ALL_COLUMNS.search(text)] == []


async def test_migrating_again_changes_nothing(database_url: URL) -> None:
    assert await migrate.migrate(database_url) == SCHEMA_VERSION


async def test_a_migration_that_commits_each_statement_by_itself_may_be_run_again(database_url: URL) -> None:
    await execute(database_url, "UPDATE public.alembic_version SET version_num = '0007'")
    assert await migrate.migrate(database_url) == SCHEMA_VERSION


@pytest.mark.parametrize("minimum", ["0001", SCHEMA_VERSION])
async def test_a_newer_database_that_takes_this_release_is_worked_with(database_url: URL, minimum: str) -> None:
    await pretend(database_url, "9999", minimum)
    await check_version(database_url)


async def test_a_newer_database_that_does_not_take_this_release_says_what_to_do(database_url: URL) -> None:
    await pretend(database_url, "9999", "9998")
    with pytest.raises(SchemaVersionError, match=r"needs a release that knows version 9998.*install a newer release"):
        await check_version(database_url)


async def test_an_older_database_says_what_to_do(database_url: URL) -> None:
    await execute(database_url, "UPDATE public.alembic_version SET version_num = '0006'")
    await execute(database_url, "DROP TABLE public.schema_compatibility")
    with pytest.raises(SchemaVersionError, match=f"needs {MIN_SCHEMA}: run `inferplane db migrate`"):
        await check_version(database_url)


async def test_a_service_runs_on_a_newer_database_that_takes_it(settings: Settings, database_url: URL) -> None:
    await pretend(database_url, "9999", SCHEMA_VERSION)
    async with running_mesh(settings, ServiceName.AUTH) as mesh:
        await mesh.login()


async def test_policy_decides_nothing_once_the_database_has_no_place_for_this_release(
    settings: Settings, database_url: URL
) -> None:
    source = PolicySource(*url_of(settings, ServiceName.AUTH), 300)
    following = asyncio.create_task(source.run())
    await source.first_snapshot()

    refusals: set[int] = set()

    def decides() -> bool:
        try:
            source.current()
        except InferplaneError as error:
            refusals.add(error.reason)
            return False
        return True

    assert decides()
    with capture_logs() as logs:
        await pretend(database_url, "9999", "9998")
        await until(lambda: not decides())
        assert [(line["event"], line["log_level"]) for line in logs] == [("schema_too_new", "critical")]
    await pretend(database_url, "9999", SCHEMA_VERSION)
    await until(decides)
    assert refusals == {ErrorReason.ERROR_REASON_POLICY_STALE}
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def pretend(url: URL, version: str, minimum: str) -> None:
    """Let the database be one migration ahead, as far as releases can tell."""
    await execute(url, f"UPDATE public.alembic_version SET version_num = '{version}'")  # noqa: S608 - of this file
    await execute(url, f"UPDATE public.schema_compatibility SET minimum = '{minimum}'")  # noqa: S608 - of this file


@pytest.fixture
async def events_of_before(postgres: URL) -> AsyncIterator[URL]:
    """A database of two versions before events were bytes, with 1,500 of them."""
    url = postgres.set(database="events_of_before")
    await execute(postgres, "CREATE DATABASE events_of_before")
    try:
        await asyncio.to_thread(upgrade, url, "0005")
        await execute(
            url,
            """
            INSERT INTO reporting.audit_event (id, occurred_at, service, actor, on_behalf_of, request_id, action,
                resource, detail)
            SELECT gen_random_uuid(), '2026-01-02 03:04:05.678901+00', 'artifact', 'workloads/x', 'users/bob', 'r',
                'alias.set', 'models/m', '{"version": 2, "digest": "d"}' FROM generate_series(1, 1500)
            """,
        )
        yield url
    finally:
        await execute(postgres, "DROP DATABASE events_of_before WITH (FORCE)")


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """What migrations say to the database, in order."""
    said: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        said.append(statement)

    def commit(_connection: Any) -> None:
        said.append("COMMIT")

    event.listen(Engine, "before_cursor_execute", listen)
    event.listen(Engine, "commit", commit)
    yield said
    event.remove(Engine, "before_cursor_execute", listen)
    event.remove(Engine, "commit", commit)


async def test_events_of_before_become_bytes(events_of_before: URL) -> None:
    await migrate.migrate(events_of_before)
    events = await audit_events(events_of_before, "alias.set")
    assert len(events) == 1500
    assert (events[0].time.ToJsonString(), events[0].on_behalf_of) == ("2026-01-02T03:04:05.678901Z", "users/bob")
    assert [(change.field, change.after.WhichOneof("kind")) for change in events[0].changes] == [
        ("digest", "text"),
        ("version", "number"),
    ]


async def test_events_are_converted_by_one_statement_a_batch(events_of_before: URL, statements: list[str]) -> None:
    await migrate.migrate(events_of_before)
    assert sum("UPDATE reporting.audit_event" in statement for statement in statements) == 2


async def test_policy_and_sign_ins_are_locked_after_all_events_are_converted(
    events_of_before: URL, statements: list[str]
) -> None:
    await migrate.migrate(events_of_before)
    of_events = [at for at, statement in enumerate(statements) if "reporting.audit_event" in statement]
    # What was locked before is free again by then.
    began = max(at for at, said in enumerate(statements[: of_events[0]]) if said == "COMMIT")
    of_calls = [at for at, said in enumerate(statements) if at > began and ("policy." in said or "auth." in said)]
    assert of_events[-1] < of_calls[0]


NAMED = {"application_name": "inferplane-auth"}


@pytest.mark.parametrize(
    ("settings_of_session", "statement", "name"),
    [(NAMED, "SELECT 1", "inferplane-auth"), ({}, "SELECT revision FROM policy.revision", "inferplane")],
    ids=["a service", "what follows the policy, in releases that gave it no name"],
)
async def test_a_schema_that_services_could_not_work_with_is_refused_while_they_are_connected(
    events_of_before: URL, settings_of_session: dict[str, str], statement: str, name: str
) -> None:
    service = await asyncpg.connect(asyncpg_dsn(events_of_before), server_settings=settings_of_session)
    await service.fetch(statement)
    with pytest.raises(migrate.ServicesConnectedError, match=rf"stop all of them.*connected are {name} \(1\)$"):
        await migrate.migrate(events_of_before)
    assert await service.fetchval("SELECT version_num FROM public.alembic_version") == "0005"
    await service.close()
    assert await migrate.migrate(events_of_before) == SCHEMA_VERSION


async def test_people_and_services_that_can_go_on_hold_up_no_migration(
    events_of_before: URL, database_url: URL
) -> None:
    person = await asyncpg.connect(asyncpg_dsn(events_of_before), server_settings={"application_name": "psql"})
    service = await asyncpg.connect(asyncpg_dsn(database_url), server_settings=NAMED)
    await migrate.migrate(events_of_before)
    await migrate.migrate(database_url)
    await person.close()
    await service.close()


async def test_what_meets_a_table_that_was_migrated_meanwhile_may_be_repeated(
    settings: Settings, database_url: URL
) -> None:
    database = Database(settings, ServiceName.AUTH)

    async def read() -> None:
        async with database.transaction() as connection:
            await connection.execute(auth.signing_key.select())

    await read()
    await execute(database_url, "ALTER TABLE auth.signing_key ALTER COLUMN kid TYPE varchar")
    with pytest.raises(InferplaneError) as refused:
        await read()
    assert refused.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    await read()
    await database.close()


async def test_each_connection_of_a_service_is_called_so(settings: Settings, database_url: URL) -> None:
    query = "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()"
    async with running_mesh(settings, ServiceName.AUTH) as mesh:
        await mesh.login()
        names = {row["application_name"] for row in await rows(database_url, query)}
    assert names == {"", "inferplane-auth", "inferplane-policy"}


MIGRATE = """
import asyncio, sys
from sqlalchemy import make_url
from inferplane.server.storage.migrate import migrate
asyncio.run(migrate(make_url(sys.argv[1])))
"""


async def test_two_who_migrate_at_once_take_turns(events_of_before: URL) -> None:
    url = events_of_before.render_as_string(hide_password=False)
    both = [await asyncio.create_subprocess_exec(sys.executable, "-c", MIGRATE, url) for _ in range(2)]
    assert [await process.wait() for process in both] == [0, 0]
    assert len(await audit_events(events_of_before, "alias.set")) == 1500


def upgrade(url: URL, version: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    command.upgrade(config, version)


async def test_texts_sort_as_python_sorts_them(database_url: URL) -> None:
    query = """
        SELECT table_name || '.' || column_name AS name FROM information_schema.columns
        WHERE table_schema = 'auth' AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'
        AND (table_name, column_name) NOT IN (('user_account', 'password_hash'), ('role_grant', 'creator'))
    """
    assert await rows(database_url, query) == []


async def test_every_index_sorts_texts_by_their_bytes(database_url: URL) -> None:
    """In another order, an upgrade of the database's system may leave an index that does not find what it holds."""
    # Alembic's own table has one row.
    query = """
        SELECT indexrelid::regclass || ' ' || number AS name
        FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
        CROSS JOIN unnest(indkey::smallint[], indcollation::oid[]) AS part (number, by)
        LEFT JOIN pg_attribute ON attrelid = indrelid AND attnum = number
        WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace)
        AND indrelid <> 'public.alembic_version'::regclass
        AND (by NOT IN (0, '"C"'::regcollation) OR attcollation NOT IN (0, '"C"'::regcollation))
    """
    assert await rows(database_url, query) == []


def sorted_texts() -> set[tuple[str | None, str, str]]:
    """The columns of text that repositories sort by, as far as they name them where they do."""
    found = set()
    for module in REPOSITORIES:
        calls = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call)]
        sorting = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "order_by"]
        for part in (part for call in sorting for argument in call.args for part in ast.walk(argument)):
            with suppress(AttributeError):
                column = attrgetter(ast.unparse(part))(module)
                if isinstance(column, Column) and isinstance(column.type, Text):
                    found.add((column.table.schema, column.table.name, column.name))
    return found


async def test_what_repositories_sort_by_is_sorted_by_its_bytes(database_url: URL) -> None:
    """The order that Python and page tokens know."""
    query = """
        SELECT table_schema, table_name, column_name FROM information_schema.columns
        WHERE data_type = 'text' AND collation_name IS DISTINCT FROM 'C'
    """
    otherwise = {tuple(row) for row in await rows(database_url, query)}
    found = sorted_texts()
    assert ("artifact", "model_alias", "alias") in found
    assert not found & otherwise
