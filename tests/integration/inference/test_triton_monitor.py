"""Whether Triton counts as there, while it goes and comes back empty."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferplane.server.embedded.triton import EmbeddedTriton
from inferplane.server.inference.triton_link import TritonLink
from inferplane.server.inference.triton_monitor import RELOAD_GRACE, TritonMonitor, Wanted
from tests.support.mesh import until

M = Wanted("m", 1, ready=True)


class Line:
    """A TCP line to Triton that can be cut: to its caller, Triton has then started again, too quickly to be missed."""

    def __init__(self, endpoint: str) -> None:
        self._port = int(endpoint.rpartition(":")[2])
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, back]
        await asyncio.gather(copy(reader, back), copy(there, writer), return_exceptions=True)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


class Watched:
    """A monitor of a real Triton, with a clock that only the test moves."""

    def __init__(self, triton: EmbeddedTriton, line: Line, endpoint: str) -> None:
        self.triton = triton
        self.line = line
        self.link = TritonLink(endpoint, triton.header, 1 << 20)
        self.now = 0.0
        self.asked = 0
        self.wanted: list[Wanted] | None = []
        self.reports: list[bool] = []
        self.monitor = TritonMonitor(self.link, self.served, self.reports.append, lambda: self.now)

    def served(self) -> list[Wanted] | None:
        self.asked += 1
        return self.wanted

    async def is_asked_again(self) -> None:
        before = self.asked
        await until(lambda: self.asked > before + 1)

    async def restart(self) -> None:
        port = int(self.triton.endpoint.rpartition(":")[2])
        await self.triton.stop()
        await self.triton.start(port=port)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    triton = EmbeddedTriton(tmp_path / "triton")
    await triton.start()
    line = Line(triton.endpoint)
    watched = Watched(triton, line, await line.open())
    tasks = [asyncio.create_task(part()) for part in (watched.monitor.run, watched.monitor.watch_connection)]
    await until(lambda: watched.reports == [True])
    yield watched
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await watched.link.close()
    await line.close()
    await triton.stop()


async def test_a_triton_that_comes_back_empty_long_after_its_start_does_not_count_as_back(watched: Watched) -> None:
    watched.wanted = [M]
    watched.now = 10 * RELOAD_GRACE
    watched.line.cut()
    await until(lambda: watched.reports[1:] == [False])
    await watched.is_asked_again()
    assert watched.reports == [True, False]
    watched.now += RELOAD_GRACE + 1
    await until(lambda: watched.reports == [True, False, True])


async def test_each_flap_begins_a_grace_of_its_own(watched: Watched) -> None:
    watched.wanted = [M]
    for _ in range(2):
        watched.line.cut()
        await until(lambda: watched.reports == [True, False])
        await watched.is_asked_again()
        watched.now += RELOAD_GRACE * 0.6
    await watched.is_asked_again()
    assert watched.reports == [True, False]


async def test_it_is_back_as_soon_as_it_serves_what_it_must(watched: Watched) -> None:
    watched.wanted = [M]
    await watched.restart()
    await until(lambda: watched.reports == [True, False])
    watched.wanted = []
    await until(lambda: watched.reports == [True, False, True])


async def test_what_is_being_loaded_again_is_waited_for_too(watched: Watched) -> None:
    watched.wanted = [M]
    await watched.restart()
    await until(lambda: watched.reports == [True, False])
    watched.wanted = [M._replace(ready=False)]
    await watched.is_asked_again()
    assert watched.reports == [True, False]


async def test_what_was_not_ready_before_is_not_waited_for(watched: Watched) -> None:
    watched.wanted = [M._replace(ready=False)]
    await watched.restart()
    await until(lambda: watched.reports == [True, False, True])


async def test_it_is_not_there_before_it_is_known_what_it_must_serve(watched: Watched) -> None:
    watched.wanted = None
    watched.line.cut()
    await until(lambda: watched.reports == [True, False])
    await watched.is_asked_again()
    assert watched.reports == [True, False]
    watched.wanted = []
    await until(lambda: watched.reports == [True, False, True])
