"""An AnswerReader in front of a Triton whose answers are as long as they are asked to be."""

import asyncio
import time
from typing import Any

import pytest

from inferplane.server.access.snapshot import Route
from inferplane.server.fairness import Presence
from inferplane.server.inference.dataplane import answer_reader
from inferplane.server.inference.dataplane.answer_reader import AnswerReader
from inferplane.server.inference.dataplane.known_answers import ENOUGH, LARGE, AllKnownAnswers, KnownAnswers
from inferplane.server.inference.dataplane.under_way import Place, UnderWay, Window
from tests.support.mesh import until
from tests.support.stand import target

__all__ = ["BREAKS", "CALLERS", "FAILS", "LARGER", "TINY", "FailedError", "Reader", "len_of", "reader_with", "settled"]

LARGER = b"%d" % (LARGE + 1)
TINY = b"%d" % 1
FAILS = b"fails"
BREAKS = b"breaks"
CALLERS = ("alice", "bob", "carol", "dave")


def len_of(body: bytes) -> int:
    """The bytes of the answer to a request."""
    return int(body)


class Begun:
    """A call that has begun to be answered. It has failed where the request says so."""

    def __init__(self, triton: "Triton", body: bytes) -> None:
        self._triton = triton
        self._body = body
        self.has_failed = body == FAILS

    async def read(self) -> bytes:
        if self.has_failed:
            raise FailedError
        return await self._triton.read_in_turn(self._body)


class FailedError(Exception):
    """What a call that failed raises."""


class Triton:
    """Its answers are as long as the request says, and come while `go` is set."""

    metadata = ()

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.asked = 0
        self.at_once = 0
        """Answers that were not waited for in turn, and how many such calls there are now."""
        self.open = 0
        self.read_to_the_end = 0
        self.order: list[bytes] = []
        self.reading: list[bytes] = []
        self.most = 0
        """How many were read in turn at once."""

    def predictions(self) -> Any:
        async def infer(body: bytes, _metadata: Any, _timeout: float) -> bytes:
            self.asked += 1
            self.at_once += 1
            self.open += 1
            try:
                return await self.read(body)
            finally:
                self.open -= 1

        return infer

    def predictions_in_two_steps(self) -> Any:
        async def begin(body: bytes, _metadata: Any, _timeout: float) -> Begun:
            self.asked += 1
            return Begun(self, body)

        return begin

    async def read_in_turn(self, body: bytes) -> bytes:
        self.reading.append(body)
        self.order.append(body)
        self.most = max(self.most, len(self.reading))
        try:
            answer = await self.read(body)
        finally:
            self.reading.remove(body)
        self.read_to_the_end += 1
        return answer

    async def read(self, body: bytes) -> bytes:
        await self.go.wait()
        if body == BREAKS:
            raise FailedError
        return bytes(int(body))


class Others(Presence):
    """They are here, or not."""

    here = True

    def others(self, _caller: str) -> bool:
        return self.here


class Reader(AnswerReader):
    """Asks for one deployment by default, with a long deadline."""

    def __init__(self, triton: Any) -> None:
        self.present = Others()
        super().__init__(triton, self.present)
        self._with_small = self.small = Others()
        self.triton: Triton = triton
        self.under_way = UnderWay(Window(*[1 << 40] * len(Window._fields)), Presence())
        self._all = AllKnownAnswers()

    def of(self, name: str = "m", version: int = 1) -> KnownAnswers:
        return self._all.of(Route(name, target(version), ready=True))

    @property
    def idle(self) -> bool:
        gates = (self._large, self._others)
        return not (
            self.under_way.size or self.under_way.answers.inside or any(gate.inside or gate.waiting for gate in gates)
        )

    def place(self, caller: str, known: KnownAnswers) -> Place:
        place = self.under_way.try_enter(caller, 0, known.may_be(caller))
        assert place is not None
        return place

    async def read(self, body: bytes, caller: str = "alice", name: str = "m", seconds: float = 60) -> bytes:
        known = self.of(name)
        return await self.answer(body, known, self.place(caller, known), time.monotonic() + seconds)

    async def know(self, body: bytes, name: str = "m") -> None:
        """Learn that the answers of a deployment are like this one, to all of CALLERS."""
        for number in range(ENOUGH):
            await self.read(body, CALLERS[number % len(CALLERS)], name)
        self.triton.at_once = 0
        await until(lambda: self.idle)

    def begin(self, body: bytes, caller: str = "alice", name: str = "m") -> "asyncio.Task[bytes]":
        return asyncio.create_task(self.read(body, caller, name))


def reader_with(monkeypatch: pytest.MonkeyPatch, **bounds: int) -> Reader:
    """One with other constants, in bytes."""
    for name, value in {"RATE": 1 << 62, "LEAST_COST": 0, **bounds}.items():
        monkeypatch.setattr(answer_reader, name, value)
    return Reader(Triton())


async def settled() -> None:
    """Everything that can happen without another's doing has happened."""
    for _ in range(50):
        await asyncio.sleep(0)
