"""Calls that their callers gave up while Triton had them."""

import asyncio

from inferplane.server.fairness import FairGate

__all__ = ["KEPT", "GivenUpCalls"]

KEPT = 2.0
"""Seconds. Long enough that calls which are given up at once fill Triton's memory at no more than a caller's share in
that time; short enough for whoever comes back."""


class GivenUpCalls:
    """Counts such calls against their callers for a while: Triton holds a cancelled request, with all its bytes, until
    the one that it works on for the same model has ended. It does not say when that is, so another answer ends it, or
    KEPT."""

    def __init__(self, gate: FairGate) -> None:
        self._gate = gate
        self._kept: dict[str, set[_Place]] = {}

    def keep(self, deployment: str, caller: str, cost: int) -> None:
        """A call of `caller` was given up: its place is free for others, and counts against him for a while."""
        self._gate.make_room(cost)
        place = _Place(caller, cost)
        self._kept.setdefault(deployment, set()).add(place)
        asyncio.get_running_loop().call_later(KEPT, self._leave, deployment, place)

    def let_go(self, deployment: str) -> None:
        """Triton has answered another call of the deployment. Refusals do not count: it may make them at its door."""
        for place in list(self._kept.get(deployment, ())):
            self._leave(deployment, place)

    def _leave(self, deployment: str, place: "_Place") -> None:
        kept = self._kept.get(deployment, set())
        if place in kept:
            kept.discard(place)
            self._gate.settle(place.caller, place.cost)
        if not kept:
            self._kept.pop(deployment, None)


class _Place:
    """Each is one of its own, however alike they are."""

    __slots__ = ("caller", "cost")

    def __init__(self, caller: str, cost: int) -> None:
        self.caller = caller
        self.cost = cost
