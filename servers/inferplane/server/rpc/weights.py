"""How much a process has grown since a moment, from what it weighed at each look."""

from bisect import bisect_left
from typing import NamedTuple

__all__ = ["Weight", "Weights"]

MOST_KEPT = 1000
"""Of each; beyond them neighbours become one, those of long ago first."""


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
        """Moments and numbers, both ascending: each number is the least since the moment before its own."""

    def add(self, now: float, number: int) -> None:
        while self._kept and self._kept[-1][1] >= number:
            self._kept.pop()
        self._kept.append((now, number))
        if len(self._kept) > MOST_KEPT:
            # The later moment with the lower number: what has begun in between grew by no less.
            older = self._kept[: MOST_KEPT // 2]
            merged = [(later[0], earlier[1]) for earlier, later in zip(older[::2], older[1::2], strict=True)]
            self._kept[: MOST_KEPT // 2] = merged

    def since(self, moment: float) -> int:
        return self._kept[bisect_left(self._kept, (moment,))][1]


class Weights:
    """What a process weighed. What is counted as held elsewhere may not be there yet, or lie in memory that it had
    anyway: so the least of each is taken by itself."""

    def __init__(self) -> None:
        self._resident = _Lowest()
        self._elsewhere = _Lowest()
        self._now = Weight(0, 0)

    def add(self, now: float, weight: Weight) -> None:
        """It weighs that much `now`, in seconds of any clock that goes on evenly."""
        self._resident.add(now, weight.resident)
        self._elsewhere.add(now, weight.elsewhere)
        self._now = weight

    def grown_since(self, moment: float) -> int:
        """By how many bytes it is larger now, beside what has grown elsewhere, than the least since then."""
        return self._now.own - (self._resident.since(moment) - self._elsewhere.since(moment))
