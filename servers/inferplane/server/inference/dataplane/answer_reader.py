"""Asks Triton, and reads its answers: small ones as they come, others in turn (decision 0038).

How large an answer is shows only when it is read, and a small request can have a large one. Each takes the event loop
several copies, so many at once hold up everybody.
"""

import asyncio
import time
from collections.abc import Callable

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.snapshot import Route
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import UNBOUNDED, FairGate
from inferplane.server.inference.dataplane.known_answers import SMALL, KnownAnswers
from inferplane.server.inference.triton_link import TritonLink, refused_size
from inferplane.server.inference.two_step_call import Begun
from inferplane.server.tasks import start_task

__all__ = ["AnswerReader", "in_time"]

AS_THEY_COME = 64
"""Answers at once that are taken to be small: if they are not, no more of them come together."""
TOGETHER = 32 << 20
"""Bytes of large answers that are read at once, or one answer."""
EACH = 32 << 20
EACH_BESIDE = 8 << 20
"""Bytes of them that are one caller's, or one answer; the second while others are here."""
OTHERS_TOGETHER = 4
OTHERS_EACH = 2
"""Answers that are read at once of callers who have had no large ones, of all and of one."""
COPIED = 320 << 20
"""Bytes that an event loop copies in a second, in and out again."""
MOST_KNOWN = 4096
"""Deployments about which something is known; of more, all are learned anew."""


class AnswerReader:
    """Asks Triton through `link`. Large answers stay there until it is their turn. `is_beside` says of a caller whether
    others are here, whom his answers may hold up."""

    def __init__(self, link: TritonLink, is_beside: Callable[[str], bool]) -> None:
        self._metadata = link.metadata
        self._infer = link.predictions()
        self._begin = link.predictions_in_two_steps()
        self._is_beside = is_beside
        self._known: dict[str, KnownAnswers] = {}
        self._as_they_come = 0
        self._large = _turns(TOGETHER, EACH, EACH_BESIDE, is_beside)
        # Apart, and by number, so that nobody whose answers are small waits for large ones.
        self._others = _turns(OTHERS_TOGETHER, OTHERS_EACH)

    def known_of(self, route: Route) -> KnownAnswers:
        """What is known of the answers of the version that a route leads to."""
        known = self._known.get(route.deployment)
        if known is None or known.digest != route.target.digest:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            known = self._known[route.deployment] = KnownAnswers(route.target.digest)
        return known

    async def ask(
        self, body: bytes, known: KnownAnswers, caller: str, deadline: float
    ) -> "bytes | asyncio.Task[bytes]":
        """The answer to a ModelInferRequest, or the reading of one that has begun to come: it goes on in its turn, also
        where nobody waits for it any more. `deadline`, one of `time.monotonic`, is that by which it must have begun.

        Raises AioRpcError, and so does the reading.
        """
        timeout = deadline - time.monotonic()
        if known.are_small and self._as_they_come < AS_THEY_COME:
            self._as_they_come += 1
            try:
                data = await self._infer(body, self._metadata, timeout)
            except Exception as error:
                _learn(error, known, caller)
                raise
            finally:
                self._as_they_come -= 1
            known.came(caller, len(data))
            return data
        begun = await self._begin(body, self._metadata, timeout)
        if begun.has_failed:
            return await _read(begun, known, caller)
        return start_task(self._read_in_turn(begun, known, caller))

    async def _read_in_turn(self, begun: Begun, known: KnownAnswers, caller: str) -> bytes:
        gate, cost = await self._enter(known, caller)
        size = 0
        try:
            data = await _read(begun, known, caller)
            size = len(data)
        finally:
            self._leave(gate, caller, cost, size)
        known.came(caller, size)
        return data

    def _leave(self, gate: FairGate, caller: str, cost: int, size: int) -> None:
        """After an answer of so many bytes; 0 where none was read to its end."""
        if size > SMALL and self._is_beside(caller):
            # Others have the event loop for as long as it takes to copy.
            asyncio.get_running_loop().call_later(size / COPIED, gate.leave, caller, cost)
        elif 0 < size <= SMALL and gate is self._large:
            gate.hand_on(caller, cost)
        else:
            gate.leave(caller, cost)

    async def _enter(self, known: KnownAnswers, caller: str) -> tuple[FairGate, int]:
        if not known.expected(caller):
            await self._others.enter(caller, 1)
            if not known.expected(caller):
                return self._others, 1
            # One was large while this one waited.
            self._others.leave(caller, 1)
        cost = known.expected(caller)
        await self._large.enter(caller, cost)
        return self._large, cost


async def _read(begun: Begun, known: KnownAnswers, caller: str) -> bytes:
    try:
        return await begun.read()
    except Exception as error:
        _learn(error, known, caller)
        raise


def _learn(error: Exception, known: KnownAnswers, caller: str) -> None:
    if size := refused_size(error):
        known.was_refused(caller, size)


def _turns(
    capacity: int, each: int, each_beside: int | None = None, is_beside: Callable[[str], bool] | None = None
) -> FairGate:
    """A gate where as much waits as comes: that is bounded by what is under way."""
    return FairGate(
        "",
        capacity=capacity,
        each=each,
        each_beside=each_beside,
        is_beside=is_beside,
        waiting=UNBOUNDED,
        waiting_each=UNBOUNDED,
    )


async def in_time(reading: "asyncio.Task[bytes]", deadline: float) -> bytes:
    """What was read. Where that takes longer, or nobody waits for it, reading goes on.

    Raises AioRpcError and DEADLINE_EXCEEDED.
    """
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await asyncio.shield(reading)
    except TimeoutError:
        raise InferplaneError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED) from None
