"""Auth's public keys, which whoever verifies asks for."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from inferplane.server.auth import login
from inferplane.server.auth.login import LoginFlow
from inferplane.server.tasks import ContainedError


class Database:
    """Fails by `ends`, one after the other, and then has no keys."""

    def __init__(self, *ends: BaseException) -> None:
        self._ends = list(ends)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator["Database"]:
        if self._ends:
            raise self._ends.pop()
        yield self


class Reader:
    def __init__(self, _connection: Any) -> None:
        pass

    async def signing_keys(self) -> list[Any]:
        return []


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_a_fetch_of_the_keys_that_would_end_the_process_fails_those_who_wait_alone(
    end: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "AuthReader", Reader)
    unused: Any = None
    database: Any = Database(end)
    flow = LoginFlow(database, unused, unused, unused, unused, unused)
    with pytest.raises(ContainedError):
        await flow.jwks()
    assert json.loads(await flow.jwks()) == {"keys": []}
