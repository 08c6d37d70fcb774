"""How much is under way to Triton, which holds the request of a call and then its answer until that is read."""

from collections.abc import Callable
from typing import NamedTuple

from inferplane.server.fairness import UNBOUNDED, FairGate, Presence

__all__ = ["CALL_COST", "Place", "UnderWay", "Window"]

CALL_COST = 64 << 10
"""Bytes that a call counts for beside its body."""


class Window(NamedTuple):
    """How much is under way to Triton at once, and how much may wait for it; all in bytes, of all callers and of one.

    A call counts as its body and CALL_COST, so 127 small calls of one caller, or a few large ones, are under way:
    enough to keep Triton busy. While another caller is here it is less, so that their next call does not wait long. Of
    answers counts what they may be.
    """

    capacity: int = 128 << 20
    each: int = 8 << 20
    each_beside: int = 2 << 20
    waiting: int = 512 << 20
    waiting_each: int = 128 << 20
    answers: int = 4 << 30
    answers_of_version: int = 2 << 30
    answers_each: int = 256 << 20
    answers_each_beside: int = 128 << 20


class Place:
    """What a call counts for, in each gate that it has passed."""

    __slots__ = ("_costs", "_has_room", "caller")

    def __init__(self, caller: str, gate: FairGate, cost: int) -> None:
        self.caller = caller
        self._costs = [(gate, caller, cost)]
        self._has_room = False

    def take(self, gate: FairGate, who: str, cost: int) -> None:
        """One more gate let it in."""
        self._costs.append((gate, who, cost))

    def make_room(self) -> None:
        """Others may come in, while it still counts against its caller until it is left."""
        if not self._has_room:
            self._has_room = True
            for gate, _, cost in self._costs:
                gate.make_room(cost)

    def leave(self) -> None:
        """Triton has nothing of it any more."""
        self.make_room()
        for gate, who, cost in self._costs:
            gate.settle(who, cost)


class UnderWay:
    """Lets calls in, in turn between callers, and between versions. `present` are the callers who are here."""

    def __init__(self, window: Window, present: Presence) -> None:
        self._present = present
        self._requests = FairGate(
            "too many predictions wait",
            capacity=window.capacity,
            each=window.each,
            beside=(window.each_beside, present),
            waiting=window.waiting,
            waiting_each=window.waiting_each,
        )
        # Who waits for these has a place among the requests: that bounds it.
        self._answers = FairGate(
            capacity=UNBOUNDED,
            each=window.answers_each,
            beside=(window.answers_each_beside, present),
        )
        self._answers_of_versions = FairGate(capacity=window.answers, each=window.answers_of_version)

    @property
    def size(self) -> int:
        """About how many bytes of requests are at Triton, or wait for it."""
        return self._requests.inside + self._requests.waiting

    def try_enter(self, caller: str, size: int, version: str, answer: int) -> Place | None:
        """A place for a request of so many bytes, and for an answer of a version, by its digest, if that needs no
        waiting; it must be left."""
        self._present.came(caller)
        cost = size + CALL_COST
        if not self._requests.try_enter(caller, cost):
            return None
        place = Place(caller, self._requests, cost)
        if answer:
            for gate, who in self._for_answers(caller, version):
                if not gate.try_enter(who, answer):
                    place.leave()
                    return None
                place.take(gate, who, answer)
        return place

    async def enter(self, caller: str, size: int, version: str, answer: Callable[[], int]) -> Place:
        """A place, after waiting; it must be left. What the answer may have is asked again and again: while one waits
        others come, and it is known better. Raises OVERLOADED where too much waits."""
        cost = size + CALL_COST
        await self._requests.enter(caller, cost)
        place = Place(caller, self._requests, cost)
        try:
            for gate, who in self._for_answers(caller, version):
                if not (expected := answer()):
                    break
                await gate.enter(who, expected)
                needed = min(expected, answer())
                if needed < expected:
                    gate.leave(who, expected - needed)
                if needed:
                    place.take(gate, who, needed)
        except BaseException:
            place.leave()
            raise
        return place

    def _for_answers(self, caller: str, version: str) -> tuple[tuple[FairGate, str], ...]:
        return ((self._answers, caller), (self._answers_of_versions, version))
