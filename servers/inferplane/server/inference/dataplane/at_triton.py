"""Calls at Triton: they go on when they are given up, and so none is sent that would come too late.

A call that is cancelled just when its answer is made ends the Triton that `inferplane up` starts, or costs it the
memory of the answer (decision 0040). So it goes on where nobody waits for it any more, and counts against its caller
until it is over. What it keeps Triton from is bounded by sending no more than can be answered in time, as far as that
is known.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from math import exp2
from typing import Any

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.dataplane.in_time import in_time
from inferplane.server.inference.dataplane.known_answers import KnownAnswers
from inferplane.server.inference.dataplane.under_way import Place
from inferplane.server.tasks import start_task

__all__ = ["CallsAtTriton"]

GOES_ON = 2.0
"""Seconds for which a call goes on that nobody waits for, unless its answer has begun to come: of calls that last as
long, few can be cancelled, and hardly one just when it ends."""
UNTRIED = 8
"""Calls of a version that one caller may have at Triton before one of them is over, and that he may have given up."""
SIDE_BY_SIDE = 8.0
"""Calls that are taken to go on beside one another at Triton. Half as many after each that was given up."""
MORE = 1 / 8
"""By so many they are more after each that was answered in time."""
HALF = 10.0
"""Seconds without an answer after which a call is expected to take half as long: so it is tried again."""
SHARE = 1 / 4
"""Of the last call in what one is expected to take, where that is more."""
REMEMBERED = 60.0
"""Seconds after the last answer for which it is known what calls took."""
LOOK_AGAIN = 1.0
"""Seconds after which somebody who waits looks whether there is time by now, if no call of his was over sooner."""

Ask = Callable[[float], Coroutine[Any, Any, bytes]]
"""A call to Triton that may take so many seconds."""


@dataclass(slots=True, eq=False)
class Calls:
    """Those of one caller to one version. All moments are of `time.monotonic`."""

    open: int = 0
    """How many are at Triton."""
    takes: float = 0.0
    """Seconds that one took, divided among those that were there with it; 0 before the first answer."""
    answered_at: float = 0.0
    side_by_side: float = SIDE_BY_SIDE
    given_up: int = 0
    """How many are at Triton that nobody waits for."""
    ends: "set[asyncio.Future[None]]" = field(default_factory=set)
    """By whom the next end is waited for; they are served in no order."""

    def has_time(self, now: float, deadline: float) -> bool:
        """Whether one more can be answered by `deadline`, as far as is known."""
        if self.given_up >= UNTRIED:
            return False
        if not self.takes:
            return self.open < UNTRIED
        expected = self.takes * exp2((self.answered_at - now) / HALF)
        return self.open + 1 < self.side_by_side or now + expected * (self.open + 1) / self.side_by_side <= deadline

    def took(self, now: float, seconds: float, beside: int) -> None:
        """One was answered, as many seconds after it was sent, as the last of `beside`."""
        takes = seconds / beside
        self.takes = min(takes, self.takes + (takes - self.takes) * SHARE) if self.takes else takes
        self.answered_at = now

    def give_up(self) -> None:
        """One is, that is at Triton."""
        self.given_up += 1
        self.side_by_side = max(1.0, self.side_by_side / 2)

    def in_time(self) -> None:
        """One was answered while its caller waited."""
        self.side_by_side = min(SIDE_BY_SIDE, self.side_by_side + MORE)

    def end(self) -> None:
        """One is over."""
        self.open -= 1
        self.tell()

    def tell(self) -> None:
        """Who waits looks whether there is time now."""
        for end in self.ends:
            if not end.done():
                end.set_result(None)

    async def next_end(self, seconds: float) -> None:
        """Wait until one is, at most so long."""
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ends.add(end)
        try:
            await asyncio.wait([end], timeout=seconds)
        finally:
            self.ends.discard(end)


class CallsAtTriton:
    """Sends calls to Triton, and lets them go on there."""

    def __init__(self) -> None:
        self._calls: dict[tuple[KnownAnswers, str], Calls] = {}
        self._unwanted: set[asyncio.Task[bytes]] = set()
        self._tried: set[KnownAnswers] = set()

    async def finish(self, seconds: float) -> None:
        """Wait so long for those that nobody waits for any more."""
        if self._unwanted:
            await asyncio.wait(self._unwanted, timeout=seconds)

    def may_send(self, known: KnownAnswers, caller: str, deadline: float) -> bool:
        """Whether one can be sent now. If it would come too late by what is known, that may be wrong by now: so one of
        a version is tried at a time, of whoever has none there."""
        calls = self._of(known, caller)
        return calls.has_time(time.monotonic(), deadline) or not (calls.open or known in self._tried)

    async def until_may_send(self, known: KnownAnswers, caller: str, deadline: float) -> None:
        """Wait until `may_send`. Raises DEADLINE_EXCEEDED."""
        while not self.may_send(known, caller, deadline):
            seconds = min(deadline - time.monotonic(), LOOK_AGAIN)
            if seconds <= 0:
                raise InferplaneError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED)
            await self._of(known, caller).next_end(seconds)

    async def run(self, ask: Ask, known: KnownAnswers, place: Place, deadline: float) -> bytes:
        """What `ask` gives by `deadline`, one of `time.monotonic`, where `may_send`. `place` is left when Triton has
        nothing of the call. Raises DEADLINE_EXCEEDED, though it goes on, and what `ask` raises."""
        now = time.monotonic()
        if now >= deadline:
            place.leave()
            raise InferplaneError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED)
        calls = self._of(known, place.caller)
        is_tried = not (calls.open or calls.has_time(now, deadline))
        calls.open += 1
        task = start_task(self._run(ask(deadline - now + GOES_ON), calls, calls.open, place))
        if is_tried:
            self._tried.add(known)
            task.add_done_callback(lambda _: self._tried.discard(known))
        try:
            answer = await in_time(asyncio.shield(task), deadline)
        except BaseException:
            if not task.done():
                if not known.knows(place.caller):
                    # A room that is only guessed would keep his next calls out; so many of these are bounded.
                    place.has_no_answer()
                self._let_go_on(task, calls, place)
            raise
        calls.in_time()
        return answer

    async def _run(self, work: Coroutine[Any, Any, bytes], calls: Calls, beside: int, place: Place) -> bytes:
        began = time.monotonic()
        try:
            answer = await work
        finally:
            place.leave()
            calls.end()
        now = time.monotonic()
        calls.took(now, now - began, beside)
        return answer

    def _let_go_on(self, task: "asyncio.Task[bytes]", calls: Calls, place: Place) -> None:
        calls.give_up()
        place.make_room()
        self._unwanted.add(task)
        ending = asyncio.get_running_loop().call_later(GOES_ON, self._end, task, place)

        def is_over(task: "asyncio.Task[bytes]") -> None:
            ending.cancel()
            self._unwanted.discard(task)
            calls.given_up -= 1
            calls.tell()
            if not task.cancelled():
                # Asked for, or asyncio complains: nobody is told.
                task.exception()

        task.add_done_callback(is_over)

    def _end(self, task: "asyncio.Task[bytes]", place: Place) -> None:
        if not place.is_answered:
            task.cancel()

    def _of(self, known: KnownAnswers, caller: str) -> Calls:
        calls = self._calls.get((known, caller))
        if calls is None:
            calls = self._calls[known, caller] = Calls()
            self._forget_later(known, caller, calls)
        return calls

    def _forget_later(self, known: KnownAnswers, caller: str, calls: Calls) -> None:
        asyncio.get_running_loop().call_later(REMEMBERED, self._forget, known, caller, calls)

    def _forget(self, known: KnownAnswers, caller: str, calls: Calls) -> None:
        if calls.open or calls.ends or time.monotonic() < calls.answered_at + REMEMBERED:
            self._forget_later(known, caller, calls)
        else:
            del self._calls[known, caller]
