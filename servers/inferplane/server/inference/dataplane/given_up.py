"""Calls that their callers gave up while Triton had them."""

import asyncio

from inferplane.server.inference.dataplane.known_answers import KnownAnswers
from inferplane.server.inference.dataplane.under_way import Place

__all__ = ["KEPT", "GivenUpCalls"]

KEPT = 2.0
"""Seconds. Long enough that calls which are given up at once fill Triton's memory at no more than a caller's share in
that time; short enough for whoever comes back."""


class GivenUpCalls:
    """Counts such calls against their callers for a while: Triton holds a cancelled request, with all its bytes, until
    the one that it works on for the same version has ended. It does not say when that is, so another answer ends it, or
    KEPT."""

    def __init__(self) -> None:
        self._kept: dict[KnownAnswers, set[Place]] = {}

    def keep(self, version: KnownAnswers, place: Place) -> None:
        """A call was given up: its place is free for others, and counts against its caller for a while."""
        place.has_no_answer()
        place.make_room()
        self._kept.setdefault(version, set()).add(place)
        asyncio.get_running_loop().call_later(KEPT, self._settle, version, place)

    def let_go(self, version: KnownAnswers) -> None:
        """Triton has answered another call of the version. Refusals do not count: it may make them at its door."""
        for place in list(self._kept.get(version, ())):
            self._settle(version, place)

    def _settle(self, version: KnownAnswers, place: Place) -> None:
        kept = self._kept.get(version, set())
        if place in kept:
            kept.discard(place)
            place.leave()
        if not kept:
            self._kept.pop(version, None)
