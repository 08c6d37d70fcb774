"""How much is at Triton, or about to be: it holds the request of a call and then its answer until that is read."""

from collections.abc import Callable
from typing import NamedTuple

from inferplane.server.fairness import FairGate, Presence

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
    answers_each: int = 256 << 20
    answers_each_beside: int = 128 << 20


class Place:
    """What a call counts for: its request, and what the answer may be."""

    __slots__ = ("_answer", "_has_room", "_request", "_under_way", "caller", "is_answered")

    def __init__(self, under_way: "UnderWay", caller: str, request: int, answer: int) -> None:
        self.caller = caller
        self._under_way = under_way
        self._request = request
        self._answer = answer
        self._has_room = False
        self.is_answered = False
        """Whether its answer has begun to come."""

    def make_room(self) -> None:
        """Others' requests may come in, while it still counts against its caller until it is left: for as many bytes as
        may be under way at once."""
        if not self._has_room and self._under_way.beyond + self._request <= self._under_way.most_beyond:
            self._has_room = True
            self._under_way.requests.make_room(self._request)
            self._under_way.beyond += self._request

    def has_no_answer(self) -> None:
        """It counts for none any more."""
        if self._answer:
            self._under_way.answers.leave(self.caller, self._answer)
            self._answer = 0

    def leave(self) -> None:
        """Triton has nothing of it any more."""
        if self._has_room:
            self._under_way.beyond -= self._request
            self._under_way.requests.settle(self.caller, self._request)
        else:
            self._under_way.requests.leave(self.caller, self._request)
        self.has_no_answer()


class UnderWay:
    """Lets calls in, in turn between callers. `present` are those who are here."""

    def __init__(self, window: Window, present: Presence) -> None:
        self._present = present
        self.most_beyond = window.capacity
        self.beyond = 0
        """Bytes of requests that are at Triton, and whose room others have already."""
        self.requests = FairGate(
            "too many predictions wait",
            capacity=window.capacity,
            each=window.each,
            beside=(window.each_beside, present),
            waiting=window.waiting,
            waiting_each=window.waiting_each,
        )
        # Who waits for these has a place among the requests: that bounds it.
        self.answers = FairGate(
            capacity=window.answers,
            each=window.answers_each,
            beside=(window.answers_each_beside, present),
        )

    @property
    def size(self) -> int:
        """About how many bytes of requests are at Triton, or wait for it."""
        return self.requests.inside + self.requests.waiting + self.beyond

    def try_enter(self, caller: str, size: int, answer: int) -> Place | None:
        """A place for a request and an answer of so many bytes, if that needs no waiting; it must be left."""
        self._present.came(caller)
        cost = size + CALL_COST
        if not self.requests.try_enter(caller, cost):
            return None
        if answer and not self.answers.try_enter(caller, answer):
            self.requests.leave(caller, cost)
            return None
        return Place(self, caller, cost, answer)

    async def enter(self, caller: str, size: int, answer: Callable[[], int]) -> Place:
        """A place, after waiting; it must be left. What the answer may be is asked again: while one waits others come,
        and it is known better. Raises OVERLOADED where too much waits."""
        cost = size + CALL_COST
        await self.requests.enter(caller, cost)
        try:
            if may_be := answer():
                await self.answers.enter(caller, may_be)
                if (known := answer()) < may_be:
                    self.answers.leave(caller, may_be - known)
                    may_be = known
        except BaseException:
            self.requests.leave(caller, cost)
            raise
        return Place(self, caller, cost, may_be)
