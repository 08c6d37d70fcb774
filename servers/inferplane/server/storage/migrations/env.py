"""Alembic's entry: runs the migrations on one connection, under the advisory lock.

Each is a transaction of its own, but for those that commit each statement by itself (`autocommit_block`): these can be
run again after any of them.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from inferplane.server.storage.migrate import APPLICATION_NAME, LOCK_TIMEOUT, MIGRATION_LOCK, refuse_beside_services


def upgrade(connection: Connection) -> None:
    # Of the session, not of a transaction: it is held until the connection is closed.
    connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": MIGRATION_LOCK})
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}s'"))
    connection.commit()
    context.configure(connection=connection, version_table_schema="public", transaction_per_migration=True)
    refuse_beside_services(connection, context.get_context().get_current_revision())
    connection.commit()
    with context.begin_transaction():
        context.run_migrations()


async def run() -> None:
    named = {"server_settings": {"application_name": APPLICATION_NAME}}
    engine = create_async_engine(context.config.attributes["url"], poolclass=pool.NullPool, connect_args=named)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(upgrade)
    finally:
        await engine.dispose()


asyncio.run(run())
