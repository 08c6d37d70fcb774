"""The policy follows the tables."""

import asyncio

from sqlalchemy import make_url

from inferplane.server.access.source import PolicySource


async def test_nobody_waits_longer_than_he_said_for_tables_that_are_away() -> None:
    source = PolicySource(make_url("postgresql://nowhere.invalid/none"), None, max_staleness=1.0)
    async with asyncio.timeout(10):
        await source.catch_up(timeout=0.01)
