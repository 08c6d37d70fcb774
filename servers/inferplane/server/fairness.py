"""A gate that shares what is scarce between callers: places for calls, bytes in flight."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from inferplane.server.errors import InferplaneError

__all__ = ["BESIDE_FOR", "FairGate", "Presence"]

BESIDE_FOR = 1.0
"""Seconds after its last work came for which a caller counts as being here."""
UNBOUNDED = 1 << 62


class Presence:
    """Which callers are here. Nothing is kept but the names of the last two."""

    def __init__(self) -> None:
        self._last = self._last_other = ("", float("-inf"))

    def came(self, caller: str) -> None:
        """Work of this caller did."""
        if caller != self._last[0]:
            self._last_other = self._last
        self._last = (caller, time.monotonic())

    def others(self, caller: str) -> bool:
        """Whether another caller is here."""
        _, came = self._last_other if self._last[0] == caller else self._last
        return time.monotonic() - came < BESIDE_FOR


@dataclass(slots=True, eq=False)
class _Turn:
    """Work that waits for its turn."""

    cost: int
    admitted: "asyncio.Future[None]"
    due: int | None = None
    """Its place in the line; known once it is its caller's next."""


@dataclass(slots=True)
class _Share:
    """What one caller has inside, and what of it waits outside."""

    inside: int = 0
    waiting: int = 0
    queue: deque[_Turn] = field(default_factory=deque)
    listed: bool = False
    """Whether it stands in the line of callers who wait for room."""


class FairGate:
    """Lets work of a total cost of `capacity` in at once, `each` of one caller; what does not fit waits.

    Callers who wait take turns, by cost: each waits until each other one has had as much as it asks for, or one piece
    more. At most a cost of `waiting` waits, `waiting_each` of one caller; by default as much as comes. Costs are in
    whatever unit the gate is for; work that costs more than `each` gets in when its caller has nothing else inside, and
    above `capacity` when nobody has. Of callers that have nothing here nothing is kept.

    `beside` is what one caller may have inside while others are here, and who says so; by default `each`, too.

    `full` is what they are told for whom there is no room. With `displace`, who comes when as much waits as may takes
    the place of the newest turn of whoever waits with most, unless that has hardly more: else those who came first
    would keep all others out.
    """

    def __init__(
        self,
        full: str = "",
        *,
        capacity: int,
        each: int,
        beside: tuple[int, Presence] | None = None,
        waiting: int = UNBOUNDED,
        waiting_each: int = UNBOUNDED,
        displace: bool = False,
    ) -> None:
        self._full = full
        self._capacity = capacity
        self._each = each
        self._beside = beside
        self._most_waiting = waiting
        self._most_waiting_each = waiting_each
        self._displace = displace
        self._shares: dict[str, _Share] = {}
        self._line: list[tuple[int, int, str]] = []
        """Callers who wait for room, as a heap: by when their next piece of work is due."""
        self._listed = count()
        self._clock = 0
        """When the last that was let in was due, in units of cost (self-clocked fair queueing)."""
        self.inside = 0
        """The cost of all that is inside now."""
        self.waiting = 0
        """The cost of all that waits now."""

    def try_enter(self, caller: str, cost: int) -> bool:
        """Enter if that needs no waiting; then `leave` must follow."""
        if self._line or not self._has_room(cost):
            return False
        share = self._shares.get(caller)
        if share is None:
            share = self._shares[caller] = _Share()
        elif share.queue or not self._fits(caller, share, cost):
            return False
        share.inside += cost
        self.inside += cost
        return True

    async def enter(self, caller: str, cost: int) -> None:
        """Enter, after waiting if need be; then `leave` must follow.

        Raises OVERLOADED where as much waits as may: at once, or when another takes the place to wait.
        """
        if self.try_enter(caller, cost):
            return
        share = self._shares.setdefault(caller, _Share())
        if share.waiting + cost > self._most_waiting_each or not self._may_wait(share, cost):
            self._drop_if_idle(caller, share)
            raise InferplaneError.overloaded(self._full)
        turn = _Turn(cost, asyncio.get_running_loop().create_future())
        share.queue.append(turn)
        share.waiting += cost
        self.waiting += cost
        self._enlist(caller, share)
        self._admit()
        try:
            await turn.admitted
        except asyncio.CancelledError:
            self._give_up(caller, share, turn)
            raise

    def leave(self, caller: str, cost: int) -> None:
        """Make room for others. `cost` is what was given on entering."""
        self.make_room(cost)
        self.settle(caller, cost)

    def hand_on(self, caller: str, cost: int) -> None:
        """`leave`, where the work was so little that the caller's next, if it waits and costs no more, takes the place
        out of turn."""
        share = self._shares[caller]
        while share.queue and share.queue[0].cost <= cost:
            turn = share.queue.popleft()
            self._count_out(share, turn)
            if not turn.admitted.cancelled():
                self._let_in(share, turn)
                break
        self.leave(caller, cost)

    def make_room(self, cost: int) -> None:
        """The first half of `leave`: others may come in, while it still counts against its caller until `settle`."""
        self.inside -= cost
        if self._line:
            self._admit()

    def settle(self, caller: str, cost: int) -> None:
        """The second half of `leave`: it counts against its caller no more."""
        share = self._shares[caller]
        share.inside -= cost
        self._enlist(caller, share)
        self._drop_if_idle(caller, share)
        if self._line:
            self._admit()

    def _may_wait(self, share: _Share, cost: int) -> bool:
        """Whether there is a place to wait; one is taken from another if need be."""
        beyond = self.waiting + cost - self._most_waiting
        if beyond <= 0:
            return True
        most = max(self._shares.values(), key=lambda other: other.waiting)
        if not self._displace or not most.queue:
            return False
        newest = most.queue[-1]
        if newest.cost < beyond or most.waiting - newest.cost < share.waiting + cost:
            return False
        most.queue.pop()
        self._count_out(most, newest)
        # One that was cancelled has not been told yet.
        if not newest.admitted.cancelled():
            newest.admitted.set_exception(InferplaneError.overloaded(self._full))
        return True

    def _has_room(self, cost: int) -> bool:
        return self.inside + cost <= self._capacity or not self.inside

    def _fits(self, caller: str, share: _Share, cost: int) -> bool:
        return not share.inside or share.inside + cost <= self._share_of(caller)

    def _share_of(self, caller: str) -> int:
        if self._beside is None:
            return self._each
        each, presence = self._beside
        return each if presence.others(caller) else self._each

    def _give_up(self, caller: str, share: _Share, turn: _Turn) -> None:
        if not turn.admitted.cancelled():
            # Let in, or displaced, at the very moment in which it was cancelled.
            if turn.admitted.exception() is None:
                self.leave(caller, turn.cost)
            return
        if turn in share.queue:
            share.queue.remove(turn)
            self._count_out(share, turn)
        self._enlist(caller, share)
        self._drop_if_idle(caller, share)
        self._admit()

    def _enlist(self, caller: str, share: _Share) -> None:
        """Stand in line if the next piece of work fits the caller's own share."""
        if not share.queue:
            return
        turn = share.queue[0]
        if turn.due is None:
            turn.due = self._clock + turn.cost
        if share.listed or not self._fits(caller, share, turn.cost):
            return
        share.listed = True
        heappush(self._line, (turn.due, next(self._listed), caller))

    def _admit(self) -> None:
        """Let in, in turn, what there is room for."""
        while self._line:
            due, _, caller = self._line[0]
            share = self._shares[caller]
            turn = share.queue[0] if share.queue else None
            if turn is not None and turn.due == due and self._fits(caller, share, turn.cost):
                if not self._has_room(turn.cost):
                    return
                self._clock = max(self._clock, due)
                share.queue.popleft()
                self._count_out(share, turn)
                # One that was cancelled has not been told yet.
                if not turn.admitted.cancelled():
                    self._let_in(share, turn)
            heappop(self._line)
            share.listed = False
            self._enlist(caller, share)
            self._drop_if_idle(caller, share)

    def _let_in(self, share: _Share, turn: _Turn) -> None:
        share.inside += turn.cost
        self.inside += turn.cost
        turn.admitted.set_result(None)

    def _count_out(self, share: _Share, turn: _Turn) -> None:
        share.waiting -= turn.cost
        self.waiting -= turn.cost

    def _drop_if_idle(self, caller: str, share: _Share) -> None:
        idle = not share.inside and not share.queue and not share.listed
        # The caller may have come back, with a new share, before one who gave up has got here.
        if idle and self._shares.get(caller) is share:
            del self._shares[caller]
