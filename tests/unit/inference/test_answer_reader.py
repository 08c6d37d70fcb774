"""Whose answer is read when."""

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.snapshot import Route
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.dataplane import answer_reader
from inferplane.server.inference.dataplane.answer_reader import AS_THEY_COME, ENOUGH, SMALL, AnswerReader, KnownAnswers
from tests.support.mesh import until
from tests.support.stand import target

LARGE = b"%d" % (SMALL + 1)
TINY = b"%d" % 1


class Triton:
    """Its answers are as long as the request says, and come while `go` is set."""

    metadata = ()

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.at_once = 0
        """Answers that were not waited for in turn, and how many such calls there are now."""
        self.open = 0
        self.reading: list[bytes] = []
        self.most = 0
        """How many were read in turn at once."""

    def predictions(self) -> Any:
        async def infer(body: bytes, _metadata: Any, _timeout: float) -> bytes:
            self.at_once += 1
            self.open += 1
            try:
                return await self._read(body)
            finally:
                self.open -= 1

        return infer

    def predictions_in_turn(self) -> Any:
        async def infer(body: bytes, _metadata: Any, _timeout: float, turn: AbstractAsyncContextManager[None]) -> bytes:
            async with turn:
                self.reading.append(body)
                self.most = max(self.most, len(self.reading))
                try:
                    return await self._read(body)
                finally:
                    self.reading.remove(body)

        return infer

    async def _read(self, body: bytes) -> bytes:
        await self.go.wait()
        return bytes(int(body))


class Reader(AnswerReader):
    """Asks for one deployment by default, with a long deadline."""

    def __init__(self, triton: Any) -> None:
        super().__init__(triton)
        self.triton: Triton = triton

    def of(self, name: str = "m", version: int = 1) -> KnownAnswers:
        return self.known_of(Route(name, target(version), ready=True))

    async def read(self, body: bytes, caller: str = "alice", name: str = "m", seconds: float = 60) -> bytes:
        return await self.ask(body, self.of(name), caller, time.monotonic() + seconds)

    async def know(self, body: bytes, name: str = "m") -> None:
        """Learn that the answers of a deployment are like this one."""
        for _ in range(ENOUGH):
            await self.read(body, name=name)
        self.triton.at_once = 0

    def begin(self, body: bytes, caller: str = "alice", name: str = "m") -> "asyncio.Task[bytes]":
        return asyncio.create_task(self.read(body, caller, name))


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(answer_reader, "LONGEST_PAUSE", 0)
    return Reader(Triton())


async def settled() -> None:
    """Everything that can happen without another's doing has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_answers_are_read_in_turn_until_enough_of_them_were_small(reader: Reader) -> None:
    for _ in range(ENOUGH):
        await reader.read(TINY)
    assert reader.triton.at_once == 0
    await reader.read(TINY)
    assert reader.triton.at_once == 1


async def test_after_one_large_answer_they_are_read_in_turn_however_many_small_ones_follow(reader: Reader) -> None:
    await reader.know(TINY)
    await reader.read(LARGE)
    for _ in range(ENOUGH + 1):
        await reader.read(TINY)
    assert reader.triton.at_once == 1


async def test_another_version_is_learned_anew_and_another_deployment_apart(reader: Reader) -> None:
    await reader.read(LARGE)
    assert not reader.of("other").are_large
    assert reader.of().are_large
    assert not reader.of(version=2).are_large


async def test_what_is_known_is_bounded(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_reader, "MOST_KNOWN", 10)
    for number in range(100):
        reader.of(str(number))
        assert len(reader._known) <= 10


async def test_of_large_answers_one_of_a_caller_is_read_at_once_and_two_in_all(reader: Reader) -> None:
    await reader.know(LARGE)
    reader.triton.go.clear()
    calls = [reader.begin(LARGE, caller) for caller in ["alice"] * 5]
    await settled()
    assert len(reader.triton.reading) == 1
    calls += [reader.begin(LARGE, caller) for caller in ("bob", "carol", "dave")]
    await settled()
    assert len(reader.triton.reading) == 2
    reader.triton.go.set()
    await asyncio.gather(*calls)


async def test_callers_take_turns(reader: Reader) -> None:
    """Bob's first is read before Alice's third, though all of hers came first."""
    await reader.know(LARGE)
    reader.triton.go.clear()
    order: list[str] = []

    async def one(caller: str) -> None:
        await reader.read(LARGE, caller)
        order.append(caller)

    calls = [asyncio.create_task(one("alice")) for _ in range(10)]
    await settled()
    calls.append(asyncio.create_task(one("bob")))
    await settled()
    reader.triton.go.set()
    await asyncio.gather(*calls)
    assert order.index("bob") < 2


async def test_who_waits_as_unknown_waits_with_the_large_ones_when_one_was_large(reader: Reader) -> None:
    reader.triton.go.clear()
    calls = [reader.begin(LARGE) for _ in range(10)]
    await settled()
    assert len(reader.triton.reading) == 2
    reader.triton.most = 0
    reader.triton.go.set()
    await asyncio.gather(*calls)
    assert reader.triton.most == 1


async def test_nobody_whose_answers_may_be_small_waits_for_large_ones(reader: Reader) -> None:
    await reader.know(TINY, name="small")
    await reader.know(LARGE, name="large")
    reader.triton.go.clear()
    large = [reader.begin(LARGE, caller, "large") for caller in ("alice", "bob", "carol")]
    await settled()
    small = [reader.begin(TINY, "dave", name) for name in ("small", "new")]
    await settled()
    assert reader.triton.open == 1
    assert reader.triton.reading.count(TINY) == 1
    reader.triton.go.set()
    await asyncio.gather(*large, *small)


async def test_no_more_than_so_many_answers_come_unasked_even_where_all_were_small(reader: Reader) -> None:
    await reader.know(TINY)
    reader.triton.go.clear()
    calls = [reader.begin(TINY, f"user{number}") for number in range(2 * AS_THEY_COME)]
    await settled()
    assert reader.triton.open == AS_THEY_COME
    reader.triton.go.set()
    await asyncio.gather(*calls)
    assert reader.triton.open == 0


async def test_who_comes_to_no_turn_in_time_is_told_and_takes_no_place(reader: Reader) -> None:
    await reader.know(LARGE)
    reader.triton.go.clear()
    first = reader.begin(LARGE)
    await settled()
    with pytest.raises(InferplaneError) as late:
        await reader.read(LARGE, seconds=0.05)
    assert late.value.reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
    reader.triton.go.set()
    await first
    assert await reader.read(LARGE)


async def test_who_leaves_while_waiting_or_reading_takes_no_place(reader: Reader) -> None:
    await reader.know(LARGE)
    reader.triton.go.clear()
    reading, waiting = reader.begin(LARGE), reader.begin(LARGE)
    await settled()
    for call in (waiting, reading):
        call.cancel()
    await asyncio.gather(reading, waiting, return_exceptions=True)
    reader.triton.go.set()
    await asyncio.gather(*(reader.read(LARGE) for _ in range(3)))
    await until(lambda: not reader._large.inside and not reader._unknown.inside)


async def test_a_turn_lasts_twice_as_long_as_reading_takes() -> None:
    reader = Reader(Triton())
    await reader.read(LARGE)
    reader.triton.go.clear()
    first = reader.begin(LARGE)
    await settled()
    began = time.monotonic()
    await asyncio.sleep(0.05)
    reader.triton.go.set()
    await first
    read = time.monotonic() - began
    await reader.read(LARGE)
    assert time.monotonic() - began >= 2 * min(read, answer_reader.LONGEST_PAUSE)
