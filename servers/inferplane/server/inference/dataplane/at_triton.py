"""Calls at Triton: none is cancelled there, and so none is sent that would come too late.

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

__all__ = ["FINISHES", "CallsAtTriton"]

FINISHES = 60.0
"""Seconds after its time for which a call may go on."""
AT_ONCE = 8
"""Calls of a version that one caller may have there before anything is known; and so many are taken to go on side by
side, until some of his came too late."""
CAREFUL = 10.0
"""Seconds after a call came too late in which his are taken to be answered one after the other."""
HALF = 10.0
"""Seconds after which half as much is expected of the time that a call takes: so it is tried again, ever less often."""
SHARE = 1 / 4
"""Of the last call in what one is expected to take, where that is more."""
REMEMBERED = 60.0
"""Seconds for which it is known what calls of somebody took who makes none."""
LOOK_AGAIN = 1.0
"""Seconds after which somebody who waits looks whether there is time by now, if no call of his was over sooner."""

Ask = Callable[[float], Coroutine[Any, Any, bytes]]
"""A call to Triton that may take so many seconds."""


@dataclass(slots=True, eq=False)
class _Calls:
    """Those of one caller to one version."""

    open: int = 0
    each: float = 0.0
    """Seconds that one took, divided among those that were there when it began; 0 where none is over."""
    each_at: float = 0.0
    """When that was."""
    careful_until: float = float("-inf")
    ends: "set[asyncio.Future[None]]" = field(default_factory=set)
    """By whom the next end is waited for."""

    def has_time(self, deadline: float) -> bool:
        """Whether one more can be answered by then, as far as is known."""
        now = time.monotonic()
        is_careful = now < self.careful_until
        if not self.each or not is_careful:
            return self.open < AT_ONCE or (self.each > 0 and now + self.each * (self.open + 1) / AT_ONCE <= deadline)
        expected = self.each * exp2((self.each_at - now) / HALF)
        return now + expected * (self.open + 1) <= deadline

    async def next_end(self, deadline: float) -> None:
        """Wait until one of them is over, or for LOOK_AGAIN. Raises DEADLINE_EXCEEDED."""
        left = deadline - time.monotonic()
        if left <= 0:
            self.came_too_late()
            _raise_too_late()
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ends.add(end)
        try:
            await asyncio.wait([end], timeout=min(left, LOOK_AGAIN))
        finally:
            self.ends.discard(end)

    def came_too_late(self) -> None:
        self.careful_until = time.monotonic() + CAREFUL

    def took(self, seconds: float, beside: int) -> None:
        each = seconds / beside
        self.each = min(each, self.each + (each - self.each) * SHARE) if self.each else each
        self.each_at = time.monotonic()

    def end(self) -> None:
        self.open -= 1
        for end in self.ends:
            if not end.done():
                end.set_result(None)


class CallsAtTriton:
    """Sends calls to Triton, and lets them go on there."""

    def __init__(self) -> None:
        self._calls: dict[tuple[KnownAnswers, str], _Calls] = {}
        self._unwanted: set[asyncio.Task[bytes]] = set()
        self._trying: set[KnownAnswers] = set()

    async def finish(self, seconds: float) -> None:
        """Wait so long for those that nobody waits for any more."""
        if self._unwanted:
            await asyncio.wait(self._unwanted, timeout=seconds)

    async def run(self, ask: Ask, known: KnownAnswers, place: Place, deadline: float) -> bytes:
        """What `ask` gives by `deadline`, one of `time.monotonic`; it leaves `place`. Raises DEADLINE_EXCEEDED, though
        it goes on, and what `ask` raises."""
        calls = self._of(known, place.caller)
        try:
            while not (has_time := calls.has_time(deadline)) and not self._may_try(calls, known):
                await calls.next_end(deadline)
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                _raise_too_late()
        except BaseException:
            place.leave()
            raise
        calls.open += 1
        task = start_task(self._run(ask(seconds + FINISHES), calls, calls.open))
        if not has_time:
            self._trying.add(known)
            task.add_done_callback(lambda _: self._trying.discard(known))
        try:
            return await in_time(asyncio.shield(task), deadline)
        except BaseException:
            if not task.done():
                calls.came_too_late()
                place.make_room()
                self._unwanted.add(task)
                task.add_done_callback(self._forget_unwanted)
            raise

    def _forget_unwanted(self, task: "asyncio.Task[bytes]") -> None:
        self._unwanted.discard(task)
        if not task.cancelled():
            # Asked for, or asyncio complains: nobody is told.
            task.exception()

    async def _run(self, work: Coroutine[Any, Any, bytes], calls: _Calls, beside: int) -> bytes:
        began = time.monotonic()
        try:
            answer = await work
        finally:
            calls.end()
        calls.took(time.monotonic() - began, beside)
        return answer

    def _may_try(self, calls: _Calls, known: KnownAnswers) -> bool:
        """Whether to send one though it would come too late by what is known, which may be wrong by now. One of a
        version is tried at a time, of whoever has none there."""
        return not calls.open and known not in self._trying

    def _of(self, known: KnownAnswers, caller: str) -> _Calls:
        calls = self._calls.get((known, caller))
        if calls is None:
            calls = self._calls[known, caller] = _Calls()
            self._forget_later(known, caller, calls)
        return calls

    def _forget_later(self, known: KnownAnswers, caller: str, calls: _Calls) -> None:
        asyncio.get_running_loop().call_later(REMEMBERED, self._forget, known, caller, calls)

    def _forget(self, known: KnownAnswers, caller: str, calls: _Calls) -> None:
        if calls.open or calls.ends or time.monotonic() < calls.each_at + REMEMBERED:
            self._forget_later(known, caller, calls)
        else:
            del self._calls[known, caller]


def _raise_too_late() -> None:
    raise InferplaneError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED)
