"""The policy follows the tables."""

import asyncio

import pytest
from sqlalchemy import make_url

from inferplane.server.access import source
from inferplane.server.access.source import PolicySource


async def test_nobody_waits_for_long_for_tables_that_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PATIENCE", 0.01)
    policy = PolicySource(make_url("postgresql://127.0.0.1:1/none"), None, max_staleness=1.0)
    following = asyncio.create_task(policy.run())
    async with asyncio.timeout(10):
        await policy.catch_up()
    assert not following.done()
    following.cancel()
