"""By how much a process has grown, from what it weighed at each look."""

from bisect import bisect_left
from typing import NamedTuple

__all__ = ["LOWEST_OF", "Growth", "Weight"]

GRAIN = 256 << 10
"""Bytes of growth that make no difference."""
LOWEST_OF = 10.0
"""Seconds of which the least memory is what the process takes by itself. What was let go a moment ago may not be free
yet: taken for the process's own, it would let the next bodies have as much again, and so on."""


class Weight(NamedTuple):
    """Bytes of the process, and how many of them are counted as held elsewhere."""

    resident: int
    elsewhere: int

    @property
    def own(self) -> int:
        """What is held by nothing else."""
        return self.resident - self.elsewhere


class _Lowest:
    """The least of some numbers since any moment."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, int]] = []
        """Moments and numbers, both ascending: each number is the least since the moment before its own, or up to GRAIN
        less."""

    def add(self, now: float, number: int) -> None:
        while self._kept and self._kept[-1][1] >= number:
            self._kept.pop()
        if self._kept and number < self._kept[-1][1] + GRAIN:
            number = self._kept.pop()[1]
        self._kept.append((now, number))

    def since(self, moment: float) -> int:
        return self._kept[bisect_left(self._kept, (moment,))][1]


class Growth:
    """What a process has grown by beside what has grown elsewhere, in bytes; moments are seconds on the monotonic
    clock. What is counted as held elsewhere may not be there yet, or lie in memory that it had anyway: so the least of
    each is taken by itself."""

    def __init__(self) -> None:
        self.forget()
        self.weight = Weight(0, 0)
        """The latest."""
        self._began = self._held_until = float("-inf")

    def add(self, now: float, weight: Weight) -> None:
        """It weighs that much now."""
        self._resident.add(now, weight.resident)
        self._elsewhere.add(now, weight.elsewhere)
        self.weight = weight

    def forget(self) -> None:
        """It is as large as it is by itself."""
        self._resident = _Lowest()
        self._elsewhere = _Lowest()

    def since(self, began: float) -> int:
        """Above the least since LOWEST_OF seconds before something began."""
        moment = began - LOWEST_OF
        return self.weight.own - (self._resident.since(moment) - self._elsewhere.since(moment))

    def since_oldest(self, began: float, now: float) -> int:
        """The same of what began first of all that there is. While calls are ended for it, and LOWEST_OF seconds
        longer, that becomes no later: or those who go and come again in turns would each find there what the others
        hold."""
        self._began = min(began, self._began) if now < self._held_until else began
        return self.since(self._began)

    def hold(self, now: float) -> None:
        """Calls are ended for it."""
        self._held_until = now + LOWEST_OF
