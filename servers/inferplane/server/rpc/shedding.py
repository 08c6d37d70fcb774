"""Who goes where a process has grown too large: the likeliest reason first, more where that was in vain."""

from collections import defaultdict
from collections.abc import Container, Mapping

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
ENOUGH = 1 / 2
"""Of the growth: who may have kept so much together may be all of the reason."""
NEGLIGIBLE = 1 / 8
"""Of the growth. Who may have kept less than an equal share of it, among all, loses no connections: were all of these
the reason, no more than that would remain."""


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
    half of the growth; where that does not help, of twice as many at least. Whose end has helped goes first for ten
    minutes, until it helps no more."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._suspects: dict[str, float] = {}
        self._begin()

    def _begin(self) -> None:
        self._fewest = 1
        self._gone: set[str] = set()
        self._went: set[str] = set()
        """Before the last step, and with it for the first time."""

    def helped(self, now: float) -> None:
        """The process is no longer too large."""
        self._suspects |= dict.fromkeys(self._went, now)
        self._begin()

    def next(self, kept: Mapping[str, Mapping[str, int]], growth: int, now: float) -> dict[str, Mapping[str, int]]:
        """Those that go now, of whose connections so many bytes each may have been kept."""
        if now - self._last >= EPISODE:
            self._begin()
        self._suspects = {
            owner: since
            for owner, since in self._suspects.items()
            if owner not in self._went and now - since < SUSPECTED
        }
        totals = {owner: sum(connections.values()) for owner, connections in kept.items()}
        least = growth * NEGLIGIBLE / len(totals)
        ranked = sorted(
            (owner for owner, total in totals.items() if total >= least),
            key=lambda owner: (owner in self._suspects, totals[owner]),
            reverse=True,
        )
        going: dict[str, Mapping[str, int]] = {}
        explained = 0
        for owner in ranked:
            if len(going) >= self._fewest and explained >= growth * ENOUGH:
                break
            going[owner] = kept[owner]
            explained += totals[owner]
        self._gone |= self._went
        self._went = going.keys() - self._gone
        self._last = now
        self._fewest = 2 * len(going)
        return going
