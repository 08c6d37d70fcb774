"""What each service's database role may and may not do."""

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, ProgrammingError

from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.database import Database, database_url, lone_connection, role_of

OWN = {
    ServiceName.AUTH: "auth.user_account",
    ServiceName.ARTIFACT: "artifact.model",
    ServiceName.INFERENCE: "inference.deployment",
    ServiceName.REPORTING: "reporting.prediction",
}


async def attempt(settings: Settings, service: ServiceName, statement: str) -> object:
    database = Database(settings, service)
    try:
        async with database.transaction() as connection:
            result = await connection.execute(sa.text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        await database.close()


@pytest.mark.parametrize("service", ServiceName)
async def test_a_service_works_as_its_own_role(settings: Settings, service: ServiceName) -> None:
    assert await attempt(settings, service, "SELECT current_user") == role_of(service)


@pytest.mark.parametrize("service", ServiceName)
@pytest.mark.parametrize("other", ServiceName)
async def test_a_service_sees_its_own_tables_and_nobody_elses(
    settings: Settings, service: ServiceName, other: ServiceName
) -> None:
    statement = f"SELECT count(*) FROM {OWN[other]}"  # noqa: S608 - names of this file
    if service is other:
        assert await attempt(settings, service, statement) == 0
    else:
        with pytest.raises(ProgrammingError, match="permission denied"):
            await attempt(settings, service, statement)


@pytest.mark.parametrize("service", ServiceName)
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM reporting.audit_event",
        "UPDATE reporting.audit_event SET actor = 'somebody else'",
        "DELETE FROM reporting.audit_event",
        "TRUNCATE reporting.audit_event",
        "UPDATE policy.revision SET revision = 0",
        "CREATE TABLE public.mine (x int)",
    ],
)
async def test_nobody_rewrites_the_audit_or_the_policy(
    settings: Settings, service: ServiceName, statement: str
) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"):
        await attempt(settings, service, statement)


async def test_a_version_cannot_be_changed_even_by_its_service(settings: Settings) -> None:
    with pytest.raises(ProgrammingError, match="permission denied"):
        await attempt(settings, ServiceName.ARTIFACT, "UPDATE artifact.model_version SET digest = 'other'")


async def test_an_error_does_not_repeat_the_parameters(settings: Settings) -> None:
    """Errors are logged, and parameters may be hashes of secrets."""
    database = Database(settings, ServiceName.AUTH)
    insert = sa.text("INSERT INTO user_account VALUES (:name, :hash, :name)")
    with pytest.raises(DBAPIError) as failed:
        async with database.transaction() as connection:
            await connection.execute(insert, {"name": "bob", "hash": "a-secret-hash"})
    await database.close()
    assert "a-secret-hash" not in str(failed.value)


async def test_connections_end_with_a_machine_that_vanishes(settings: Settings) -> None:
    """Over a socket of this machine the keepalives read as zero; that they are taken is what can be seen here."""
    shown = await attempt(settings, ServiceName.INFERENCE, "SHOW idle_in_transaction_session_timeout")
    assert shown == "1min"
    connection = await lone_connection(*database_url(settings, ServiceName.INFERENCE), "test")
    try:
        assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "1min"
    finally:
        await connection.close()
