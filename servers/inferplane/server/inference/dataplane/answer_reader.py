"""Asks Triton, and reads its answers: small ones as they come, others in turn (decision 0038).

How large an answer is shows only when it is read, and a small request can have a large one. Each takes the event loop
two copies, so many at once hold up everybody.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.snapshot import Route
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import FairGate
from inferplane.server.inference.triton_link import TritonLink

__all__ = ["AnswerReader", "KnownAnswers"]

SMALL = 64 << 10
"""Bytes. So much of an answer comes before anybody reads it."""
ENOUGH = 100
"""Answers of a version, none of them larger than SMALL, after which the next are taken to be small, too."""
AS_THEY_COME = 32
"""Answers at once that are taken to be small: if they are not, no more of them come together."""
LONGEST_PAUSE = 0.1
"""Seconds; more than a copy of the largest answer takes. What takes longer was waited for, not worked on."""
MOST_KNOWN = 4096
"""Deployments about which something is known; where there are more, all are learned anew."""


class KnownAnswers:
    """What the answers of a deployment's version were like so far, in this process."""

    __slots__ = ("_count", "largest", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.largest = 0
        """Bytes."""
        self._count = 0

    @property
    def are_small(self) -> bool:
        return self._count >= ENOUGH and self.largest <= SMALL

    @property
    def are_large(self) -> bool:
        return self.largest > SMALL

    def came(self, size: int) -> None:
        """One did, of so many bytes, or had more than are taken."""
        if size > self.largest:
            self.largest = size
        self._count += 1


class AnswerReader:
    """Asks Triton through `link`. Large answers stay there until it is their turn: one of a caller, two in all."""

    def __init__(self, link: TritonLink) -> None:
        self._metadata = link.metadata
        self._infer = link.predictions()
        self._infer_in_turn = link.predictions_in_turn()
        self._known: dict[str, KnownAnswers] = {}
        self._as_they_come = 0
        self._large = _turns(together=2, each=1)
        # Apart, so that nobody whose answers may be small waits for large ones.
        self._unknown = _turns(together=4, each=2)

    def known_of(self, route: Route) -> KnownAnswers:
        """What is known of the answers of the version that a route leads to."""
        known = self._known.get(route.deployment)
        if known is None or known.version != route.target.version:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            known = self._known[route.deployment] = KnownAnswers(route.target.version)
        return known

    async def ask(self, body: bytes, known: KnownAnswers, caller: str, deadline: float) -> bytes:
        """The answer to a ModelInferRequest; `deadline` is one of `time.monotonic`.

        Raises AioRpcError, and DEADLINE_EXCEEDED where its turn does not come in time.
        """
        timeout = deadline - time.monotonic()
        if known.are_small and self._as_they_come < AS_THEY_COME:
            self._as_they_come += 1
            try:
                data = await self._infer(body, self._metadata, timeout)
            finally:
                self._as_they_come -= 1
        else:
            data = await self._infer_in_turn(body, self._metadata, timeout, self._turn(known, caller, deadline))
        known.came(len(data))
        return data

    @asynccontextmanager
    async def _turn(self, known: KnownAnswers, caller: str, deadline: float) -> AsyncIterator[None]:
        """That of a large answer lasts twice as long as reading takes, so that half of the event loop's time is left
        for others."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                gate = await self._enter(known, caller)
        except TimeoutError:
            raise InferplaneError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED) from None
        began = time.monotonic()
        try:
            yield
        finally:
            if gate is self._large:
                pause = min(time.monotonic() - began, LONGEST_PAUSE)
                asyncio.get_running_loop().call_later(pause, gate.leave, caller, 1)
            else:
                gate.leave(caller, 1)

    async def _enter(self, known: KnownAnswers, caller: str) -> FairGate:
        if not known.are_large:
            await self._unknown.enter(caller, 1)
            if not known.are_large:
                return self._unknown
            # Another was, while this one waited.
            self._unknown.leave(caller, 1)
        await self._large.enter(caller, 1)
        return self._large


def _turns(together: int, each: int) -> FairGate:
    """So many answers are read at once, `each` of one caller. How many wait is bounded by how many are under way."""
    unbounded = 1 << 32
    return FairGate("too many answers wait", capacity=together, each=each, waiting=unbounded, waiting_each=unbounded)
