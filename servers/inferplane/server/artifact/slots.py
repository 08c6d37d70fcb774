"""Bounds how much of artifacts is in memory at once, and shares it between callers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import FairGate

__all__ = ["Slots"]

_FULL = "too many other streams of this caller, or of all"
WAITING = 1024
WAITING_EACH = 64
"""Streams that may wait for a slot, in all and of one caller."""


class Slots:
    """`count` slots, at most `each` of them for one caller; who waits is served in turn between callers. `wait` is in
    seconds."""

    def __init__(self, count: int, each: int, wait: float = 30.0) -> None:
        self._gate = FairGate(_FULL, capacity=count, each=each, waiting=WAITING, waiting_each=WAITING_EACH)
        self._wait = wait

    @asynccontextmanager
    async def taken(self, caller: str) -> AsyncIterator[None]:
        """Hold a slot; raises OVERLOADED if none becomes free in time, or too many wait already."""
        try:
            async with asyncio.timeout(self._wait):
                await self._gate.enter(caller, 1)
        except TimeoutError:
            raise InferplaneError.overloaded(_FULL) from None
        try:
            yield
        finally:
            self._gate.leave(caller, 1)
