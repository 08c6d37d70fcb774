"""How many answers a caller has on their way at once, by how large they have been."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["AnswerTurns", "Kind"]

MOST = 32 << 20
"""Bytes of answers of a kind, as they are expected, that are on their way at once."""
FEWEST = 4
"""Answers of a kind that go on however large they are."""
UNKNOWN = 4 << 20
"""Bytes that are expected of the first answer."""
HALF_LIFE = 20.0
"""Seconds in which half of what is expected is forgotten."""
KINDS = 4096
"""Kinds that are remembered though nothing is on its way; those that were here last stay."""


class Kind(NamedTuple):
    """Calls whose answers are likely to be alike: of a caller to a deployment, with requests of about the same size."""

    caller: str
    deployment: str
    magnitude: int

    @classmethod
    def of(cls, caller: str, deployment: str, body: bytes) -> "Kind":
        """Within a magnitude, requests differ by a factor of 16."""
        return cls(caller, deployment, len(body).bit_length() // 4)


@dataclass(slots=True)
class _State:
    """The largest recent answer, in bytes, when it came, how many are on their way, and who waits."""

    size: int | None = None
    at: float = 0.0
    under_way: int = 0
    waiting: deque["asyncio.Future[None]"] = field(default_factory=deque)

    def has_room(self, now: float) -> bool:
        return self.under_way < FEWEST or self.under_way * self.expected(now) < MOST

    def expected(self, now: float) -> float:
        return UNKNOWN if self.size is None else self.size * 0.5 ** ((now - self.at) / HALF_LIFE)


class AnswerTurns:
    """How large an answer is shows only when it is here. So of each kind as many are on their way as MOST takes of the
    largest recent one, and at least FEWEST; the others wait. One kind holds up no other. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: OrderedDict[Kind, _State] = OrderedDict()

    def try_enter(self, kind: Kind) -> bool:
        """Take a turn if that needs no waiting; then `leave` must follow."""
        state = self._states.get(kind)
        if state is None:
            state = self._states[kind] = _State()
            self._forget()
        if state.waiting or not state.has_room(self._clock()):
            return False
        state.under_way += 1
        return True

    async def enter(self, kind: Kind) -> None:
        """Take a turn, after waiting if need be; then `leave` must follow."""
        if self.try_enter(kind):
            return
        state = self._states[kind]
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # Its turn had come at that very moment.
                self.leave(kind)
            elif turn in state.waiting:
                state.waiting.remove(turn)
            raise

    def leave(self, kind: Kind, size: int | None = None) -> None:
        """An answer of `size` bytes is here, or none comes."""
        state, now = self._states[kind], self._clock()
        self._states.move_to_end(kind)
        state.under_way -= 1
        if size is not None and (state.size is None or size >= state.expected(now)):
            state.size, state.at = size, now
        while state.waiting and state.has_room(now):
            turn = state.waiting.popleft()
            # One that was cancelled has not been told yet.
            if not turn.cancelled():
                state.under_way += 1
                turn.set_result(None)

    def _forget(self) -> None:
        if len(self._states) > KINDS:
            idle = (kind for kind, state in self._states.items() if not state.under_way and not state.waiting)
            # The last one has just come.
            if (oldest := next(idle)) is not next(reversed(self._states)):
                del self._states[oldest]
