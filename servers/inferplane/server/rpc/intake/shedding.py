"""Who goes where a process has grown too large: the likeliest reason first, more where that was in vain."""

from collections import defaultdict
from collections.abc import Container, Mapping
from itertools import accumulate
from typing import TypeAlias

from inferplane.server.rpc.call import Call

__all__ = ["CallsToEnd", "ConnectionsToClose"]

EPISODE = 10.0
"""Seconds after which a step has nothing to do with the one before."""
LITTLE = 1 << 20
"""Who has brought no more bytes that are not whole loses no calls."""
COMPARABLE = 8
"""Neither does who has brought less than this part of what the heaviest has, or had a moment ago."""
SUSPECTED = 600.0
"""Seconds for which the one whose end helped goes first."""
DEAREST = 8
"""Bytes that gRPC keeps at most of one that it has received: of a frame with one byte, which is ten on the wire, it
keeps 32, and twice that while it makes room for more of them."""
MOST_AGAIN = 5
"""Steps in which all went and came again until they are not taken for the reason any more."""
NEGLIGIBLE = 1 / 4
"""Of the growth. Those of whom least may be kept, and all together no more than that, lose no connections."""

Kept: TypeAlias = Mapping[str, Mapping[str, int]]
"""Bytes that may be kept by their owners' connections."""


def total(kept: Kept) -> int:
    """Of all."""
    return sum(sum(connections.values()) for connections in kept.values())


class CallsToEnd:
    """Which calls go, of those who have brought much: first half of what the caller has who has brought most, the
    heaviest and of these the newest, bodies before streams. Within ten seconds of that, all of whoever has, or had,
    brought most; and all where the step before did not help."""

    def __init__(self) -> None:
        self._taken = 0
        self._last = float("-inf")
        self._most, self._most_at = 0.0, float("-inf")
        self._heaviest: set[str] = set()
        self._helped = self._all_went = False

    def helped(self) -> None:
        """The process is no longer too large."""
        self._helped = True
        self._all_went = False

    def were_in_vain(self, now: float) -> bool:
        """All went a moment ago, and that did not help."""
        return self._all_went and now - self._last < EPISODE

    def next(self, brought: Mapping[Call, float], streams: Container[Call], now: float) -> list[Call]:
        """Those that go now, by how many bytes came with each; none where nobody has brought much."""
        totals = _by_caller(brought)
        if not (much := self._much(brought, totals, now)):
            return []
        if now - self._last >= EPISODE:
            self._taken = 0
            self._heaviest.clear()
        helped, self._helped = self._helped, False
        self._taken, self._last = self._taken + 1, now
        self._all_went = self._taken > 2 and not helped
        if self._all_went:
            return much
        self._heaviest.add(max(totals, key=totals.__getitem__))
        theirs = sorted(
            (call for call in much if call.principal.subject in self._heaviest),
            key=lambda call: (call not in streams, brought[call]),
        )
        return theirs[len(theirs) // 2 :] if self._taken == 1 else theirs

    def _much(self, brought: Mapping[Call, float], totals: Mapping[str, float], now: float) -> list[Call]:
        if now - self._most_at >= EPISODE:
            self._most = 0.0
        if (most := max(totals.values())) >= self._most:
            self._most, self._most_at = most, now
        least = max(LITTLE, self._most / COMPARABLE)
        return [call for call in brought if totals[call.principal.subject] >= least]


def _by_caller(brought: Mapping[Call, float]) -> dict[str, float]:
    totals: defaultdict[str, float] = defaultdict(float)
    for call, size in brought.items():
        totals[call.principal.subject] += size
    return totals


class ConnectionsToClose:
    """Whose connections go, all of them: of the one of whom most may have been kept, or of as many as may have kept
    half of the growth, or of all that came; where that does not help, of twice as many at least. Whose end has helped
    goes first for ten minutes, until it helps no more."""

    def __init__(self) -> None:
        self._suspects: dict[str, float] = {}
        self.begin({}, 0)

    def begin(self, kept: Kept, growth: int) -> None:
        """The process is too large, and was not before."""
        self._all_went = 0
        """Times without an interruption."""
        self._fewest = 0
        self._gone: set[str] = set()
        self._went: set[str] = set()
        """Before the last step, and with it for the first time."""
        self._others = _of_weight(kept, growth)
        """Who has not gone, and what may have been kept of them."""
        self._growth = growth

    def all_went_in_vain(self, came_again: bool) -> bool:
        """Whether all who can be the reason went, and that did not help, though nobody came again with as much, or who
        did went again and again."""
        return self._all_went > (MOST_AGAIN if came_again else 0)

    def have_left(self, kept: Kept) -> bool:
        """Whether what may have been kept of others has gone by itself, and may be the reason."""
        left = sum(max(0, size - sum(kept.get(owner, {}).values())) for owner, size in self._others.items())
        return left * DEAREST > self._growth

    def helped(self, kept: Kept, now: float) -> None:
        """The process is no longer too large."""
        if not self.have_left(kept):
            self._suspects |= dict.fromkeys(self._went, now)
        self.begin({}, 0)

    def next(self, kept: Kept, growth: int, now: float, *, came_again: bool = False) -> Kept:
        """Those that go now. It may have helped, where so much `came_again` that it is the reason."""
        if not came_again:
            self._fewest = max(1, 2 * self._fewest)
        self._suspects = {
            owner: since
            for owner, since in self._suspects.items()
            if owner not in self._went and now - since < SUSPECTED
        }
        sizes = _of_weight(kept, growth)
        ranked = sorted(sizes, key=lambda owner: (owner in self._suspects, sizes[owner]), reverse=True)
        enough = min(growth, total(kept)) / 2
        going: dict[str, Mapping[str, int]] = {}
        explained = 0
        for owner in ranked:
            if len(going) >= self._fewest and explained >= enough:
                break
            going[owner] = kept[owner]
            explained += sizes[owner]
        self._gone |= self._went
        self._went = going.keys() - self._gone
        self._others = {owner: size for owner, size in sizes.items() if owner not in going}
        self._growth = growth
        self._all_went = 0 if self._others else self._all_went + 1
        self._fewest = len(going)
        return going


def _of_weight(kept: Kept, growth: int) -> dict[str, int]:
    """Those without whom what may have been kept of the others is negligible."""
    sizes = {owner: sum(connections.values()) for owner, connections in kept.items()}
    ascending = sorted(sizes, key=sizes.__getitem__)
    together = accumulate(sizes[owner] for owner in ascending)
    return {
        owner: sizes[owner]
        for owner, up_to_it in zip(ascending, together, strict=True)
        if up_to_it * DEAREST > growth * NEGLIGIBLE
    }
