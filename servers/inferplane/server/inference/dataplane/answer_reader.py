"""Asks Triton, and reads its answers: small ones as they come, others in turn (decision 0038).

How large an answer is shows only when it is read, and a small request can have a large one. Each takes the event loop
several copies, so many at once hold up everybody.
"""

import asyncio
from functools import partial

from inferplane.server.fairness import FairGate, Presence
from inferplane.server.inference.dataplane.at_triton import CallsAtTriton
from inferplane.server.inference.dataplane.known_answers import LARGE, KnownAnswers
from inferplane.server.inference.dataplane.under_way import Place
from inferplane.server.inference.triton_link import TritonLink, refused_size
from inferplane.server.inference.two_step_call import Begun

__all__ = ["AnswerReader"]

UNASKED = 64
"""Answers at once that are taken to be small: if they are not, no more of them come together."""
TOGETHER = 32 << 20
"""Bytes of large answers that are read at once, or one answer."""
EACH_BESIDE = 8 << 20
"""Bytes of them that are one caller's, or one answer, while others are here."""
OTHERS_TOGETHER = 4
OTHERS_EACH = 2
"""Answers that are read at once of callers who have had no large ones, of all and of one."""
LEAST_COST = 2 << 20
"""Bytes that each of them counts for at least: it may have more than was expected."""
RATE = 160 << 20
"""Bytes of large answers in a second, while others are here who have had none: half of what an event loop copies, in
and out again."""


class AnswerReader:
    """Asks Triton through `link`. Large answers stay there until it is their turn. `present` are the callers who are
    here."""

    def __init__(self, link: TritonLink, present: Presence) -> None:
        self._metadata = link.metadata
        self._infer = link.predictions()
        self._begin = link.predictions_in_two_steps()
        self._at_triton = CallsAtTriton()
        self._unasked = 0
        self._large = FairGate(capacity=TOGETHER, each=TOGETHER, beside=(EACH_BESIDE, present))
        # Apart, and by number, so that nobody whose answers are small waits for large ones.
        self._others = FairGate(capacity=OTHERS_TOGETHER, each=OTHERS_EACH)
        self._with_small = Presence()
        self._paced_until = float("-inf")

    def may_ask(self, known: KnownAnswers, caller: str, deadline: float) -> bool:
        """Whether `answer` can be called now: else it would come too late."""
        return self._at_triton.may_send(known, caller, deadline)

    async def until_may_ask(self, known: KnownAnswers, caller: str, deadline: float) -> None:
        """Wait until `may_ask`. Raises DEADLINE_EXCEEDED."""
        await self._at_triton.until_may_send(known, caller, deadline)

    async def answer(self, body: bytes, known: KnownAnswers, place: Place, deadline: float) -> bytes:
        """The answer to a ModelInferRequest, by `deadline`, one of `time.monotonic`. It is read, in its turn, also
        where nobody waits for it any more. `place` is left when Triton has nothing of the call.

        Raises AioRpcError and DEADLINE_EXCEEDED.
        """
        if not known.expected(place.caller):
            self._with_small.came(place.caller)
        return await self._at_triton.run(partial(self._ask, body, known, place), known, place, deadline)

    async def finish(self, seconds: float) -> None:
        """Wait so long for calls that nobody waits for any more."""
        await self._at_triton.finish(seconds)

    async def _ask(self, body: bytes, known: KnownAnswers, place: Place, timeout: float) -> bytes:
        caller = place.caller
        try:
            if known.are_small and self._unasked < UNASKED:
                data = await self._as_it_comes(body, timeout)
            else:
                data = await self._in_turn(body, known, place, timeout)
        except Exception as error:
            if size := refused_size(error):
                known.was_refused(caller, size)
            raise
        known.came(caller, len(data))
        return data

    async def _as_it_comes(self, body: bytes, timeout: float) -> bytes:
        self._unasked += 1
        try:
            return await self._infer(body, self._metadata, timeout)
        finally:
            self._unasked -= 1

    async def _in_turn(self, body: bytes, known: KnownAnswers, place: Place, timeout: float) -> bytes:
        begun = await self._begin(body, self._metadata, timeout)
        place.is_answered = True
        return await (begun.read() if begun.has_failed else self._read(begun, known, place.caller))

    async def _read(self, begun: Begun, known: KnownAnswers, caller: str) -> bytes:
        gate, cost = await self._enter(known, caller)
        began, size = asyncio.get_running_loop().time(), 0
        try:
            data = await begun.read()
            size = len(data)
        finally:
            self._leave(gate, caller, cost, began, size)
        return data

    async def _enter(self, known: KnownAnswers, caller: str) -> tuple[FairGate, int]:
        if not known.expected(caller):
            await self._others.enter(caller, 1)
            if not known.expected(caller):
                return self._others, 1
            # One was large while this one waited.
            self._others.leave(caller, 1)
        cost = max(known.expected(caller), LEAST_COST)
        await self._large.enter(caller, cost)
        return self._large, cost

    def _leave(self, gate: FairGate, caller: str, cost: int, began: float, size: int) -> None:
        """After an answer of so many bytes; 0 where none was read to its end."""
        if size > LARGE and self._with_small.others(caller):
            # However many are read side by side, others have the event loop for half of the time.
            self._paced_until = max(self._paced_until, began) + size / RATE
            paced = self._paced_until if gate is self._large else began
            asyncio.get_running_loop().call_at(paced, gate.leave, caller, cost)
        elif 0 < size <= LARGE and gate is self._large:
            gate.hand_on(caller, cost)
        else:
            gate.leave(caller, cost)
