"""Migrations: run by the owner under an advisory lock; services only check the version."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, text

from inferplane.server.storage.schema import BREAK, SCHEMA_VERSION

__all__ = [
    "APPLICATION_NAME",
    "LOCK_TIMEOUT",
    "MIGRATION_LOCK",
    "ServicesConnectedError",
    "migrate",
    "refuse_beside_services",
]

MIGRATION_LOCK = 0x696E666572
"""Any fixed number; everybody who migrates takes this advisory lock."""
LOCK_TIMEOUT = 30
"""Seconds that a migration waits for a table which somebody else has locked; then it fails, and can be run again.
Nothing of it was done then, but where it commits each statement by itself, as 0008 does."""
APPLICATION_NAME = "inferplane-migrate"

# Services name their connections. Those of releases before 0007 did not name the one that follows the policy, which
# asks for the revision every second.
_SERVICES = text(
    """
    SELECT coalesce(nullif(application_name, ''), 'inferplane') AS name, host(client_addr) AS address,
        count(*) AS sessions
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> :migrate
        AND (application_name LIKE 'inferplane-%' OR query LIKE '%FROM policy.revision%')
    GROUP BY 1, 2 ORDER BY 1, 2
    """
)


class ServicesConnectedError(Exception):
    """Services are connected that could not work with the schema any more; the text names them."""


async def migrate(url: URL) -> str:
    """Bring the database to this release's version, as its owner; answers that version.

    Raises ServicesConnectedError, before anything is changed, where that needs all services to be stopped.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = url
    await asyncio.to_thread(command.upgrade, config, SCHEMA_VERSION)
    return SCHEMA_VERSION


def refuse_beside_services(connection: Connection, version: str | None) -> None:
    """Raise ServicesConnectedError where services are connected to a database that is older than BREAK."""
    if version is None or version >= BREAK:
        return
    found = connection.execute(_SERVICES, {"migrate": APPLICATION_NAME}).all()
    if found:
        names = ", ".join(f"{row.name}{f' at {row.address}' if row.address else ''} ({row.sessions})" for row in found)
        raise ServicesConnectedError(
            f"services of the release before cannot work with version {BREAK}: stop all of them, migrate, and start"
            f" this release; connected are {names}"
        )
