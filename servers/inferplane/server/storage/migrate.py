"""Migrations: run by the owner under an advisory lock; services only check the version."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL

from inferplane.server.storage.schema import SCHEMA_VERSION

__all__ = ["MIGRATION_LOCK", "migrate"]

MIGRATION_LOCK = 0x696E666572
"""Any fixed number; everybody who migrates takes this advisory lock."""


async def migrate(url: URL) -> str:
    """Bring the database to this release's version, as its owner; answers that version."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = url
    await asyncio.to_thread(command.upgrade, config, SCHEMA_VERSION)
    return SCHEMA_VERSION
