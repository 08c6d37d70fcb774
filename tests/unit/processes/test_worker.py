"""A worker ends where it cannot serve."""

import asyncio
from typing import Any

import pytest

from inferplane.server.processes.worker import _follow


class Server:
    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def ended(self) -> None:
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("error", [None, ValueError("a path that is no text")], ids=["stopped", "failed"])
async def test_it_stops_where_its_server_has_ended(error: Exception | None) -> None:
    server: Any = Server(error)
    stop = asyncio.Event()
    await _follow(server, stop)
    assert stop.is_set()
