"""What arrives slowly: bodies, and messages of streams, that are not whole yet.

Nobody but gRPC knows how much of one is there. So the process is weighed: by how much it has grown above the least that
it took in the ten seconds before something began to arrive. Where that is too much, some of it is ended, and more each
time that this was not enough, of those whose connections have brought most (decision 0008).
"""

import ctypes
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.rpc.call import Call
from inferplane.server.rpc.connections import Arriving, Connections, Socket, sockets_of_this_process

__all__ = ["LOOK_INTERVAL", "Arrivals", "give_back_free_memory", "resident_memory"]

LOOK_INTERVAL = 0.05
GIVE_BACK_AFTER = 3
"""Looks from the end of calls to the giving back of what they held."""
SETTLE = 6
"""Looks until it has been: nothing more of known callers is ended meanwhile, unless the process grows on."""
LOWEST_OF = 10.0
"""Seconds of which the least memory is what the process takes by itself. What was let go a moment ago may not be free
yet: taken for the process's own, it would let the next bodies have as much again, and so on."""
PUBLIC_TIME_LIMIT = 5.0
PUBLIC_BUDGET = 64 << 20
MOST_PUBLIC = 256
"""Slow bodies of public methods; beyond them the oldest goes."""


LITTLE = 1 << 20
"""Who has brought no more bytes that are not whole loses nothing."""
TELLING = 2
TELLING_PINNED = 4
"""Where all together have brought less than this part of what the process has grown by, it is not that; the same of all
that was received, which may be kept by what is not whole."""
COMPARABLE = 8
"""Who has brought less than this part of what the heaviest has, or had a moment ago, loses nothing."""


class _Weight(NamedTuple):
    """Bytes of the process, and how many of them are counted as held elsewhere: they may not be there yet, or lie in
    memory that it had anyway, so that the least of each is taken by itself."""

    resident: int
    elsewhere: int

    def lowered_to(self, other: "_Weight") -> "_Weight":
        """The least of both."""
        if self.resident <= other.resident and self.elsewhere <= other.elsewhere:
            return self
        return _Weight(min(self.resident, other.resident), min(self.elsewhere, other.elsewhere))

    @property
    def own(self) -> int:
        """What is held by nothing else."""
        return self.resident - self.elsewhere


class _Steps:
    """Which calls go: first half of what the caller has who has brought most, the heaviest and of these the newest,
    bodies before streams. Within ten seconds of that, all of whoever has, or had, brought most; and all where the step
    before did not help."""

    def __init__(self) -> None:
        self._taken = 0
        self._last = float("-inf")
        self._heaviest: set[str] = set()
        self._helped = False

    def helped(self) -> None:
        """The process is no longer too large."""
        self._helped = True

    def next(self, brought: Mapping[Call, float], streams: Container[Call], now: float) -> list[Call]:
        """Those that go now, of the calls of those who have brought much, and how many bytes came with each."""
        if now - self._last >= LOWEST_OF:
            self._taken = 0
            self._heaviest.clear()
        helped, self._helped = self._helped, False
        self._taken, self._last = self._taken + 1, now
        if self._taken > 2 and not helped:
            return list(brought)
        by_caller = _by_caller(brought)
        self._heaviest.add(max(by_caller, key=by_caller.__getitem__))
        theirs = sorted(
            (call for call in brought if call.principal.subject in self._heaviest),
            key=lambda call: (call not in streams, brought[call]),
        )
        return theirs[len(theirs) // 2 :] if self._taken == 1 else theirs


def _by_caller(brought: Mapping[Call, float]) -> dict[str, float]:
    totals: defaultdict[str, float] = defaultdict(float)
    for call, size in brought.items():
        totals[call.principal.subject] += size
    return totals


class Arrivals:
    """Bounds what arrives slowly: known callers' to a growth of `budget` bytes, which must be whole after `time_limit`
    seconds, that of public methods to 64 MiB and 5 seconds."""

    def __init__(
        self, budget: int, time_limit: float, sockets: Callable[[], Mapping[str, Socket]] = sockets_of_this_process
    ) -> None:
        self.connections = Connections(LOWEST_OF, self.arriving, sockets)
        self._budget = budget
        self._time_limit = time_limit
        self._bodies: dict[Call, float] = {}
        self._streams: dict[Call, float] = {}
        self._now = float("-inf")
        self._levels: dict[Call, _Weight] = {}
        self._recent: deque[_Weight] = deque(maxlen=round(LOWEST_OF / LOOK_INTERVAL))
        self._steps = _Steps()
        self._until_give_back = self._settling = 0
        self._ended_since = False
        self._ended_with = 0
        self._heaviest, self._heaviest_at = 0.0, float("-inf")
        self.held_elsewhere: Callable[[], int] = lambda: 0
        """Bytes that this process holds for something else, and will let go: they are not weighed."""

    def body(self, call: Call, since: float) -> None:
        """A body has been arriving `since` then, on the monotonic clock."""
        self._bodies[call] = since

    def message(self, call: Call) -> None:
        """The next message of a stream is waited for. Streams have limits of their own for the time."""
        self._streams[call] = self._now

    def arriving(self) -> Iterator[Arriving]:
        """What is not whole yet, or has not begun, since when at the latest."""
        for calls in (self._bodies, self._streams):
            for call, since in calls.items():
                yield Arriving(call.connection, since, call.delivered)

    def over(self, call: Call) -> None:
        """It is whole, or its call has ended."""
        self._bodies.pop(call, None)
        self._streams.pop(call, None)
        self._levels.pop(call, None)

    def look(self, now: float, resident: int) -> bool:
        """End what takes too long or holds too much in a process of `resident` bytes; whether it is time to give back
        what was freed."""
        for call, since in list(self._bodies.items()):
            if now - since > (PUBLIC_TIME_LIMIT if call.method.access.public else self._time_limit):
                call.end(InferplaneError(ErrorReason.ERROR_REASON_STREAM_STALLED))
        public = [call for call in self._bodies if call.method.access.public]
        for call in public[: max(0, len(public) - MOST_PUBLIC)]:
            call.end(InferplaneError.overloaded("too many requests arrive slowly"))
        self._now = now
        self._settling = max(0, self._settling - 1)
        weight = _Weight(resident, self.held_elsewhere())
        self._recent.append(weight)
        if self._bodies or self._streams:
            self._shed(now, weight)
        return self._is_time_to_give_back()

    def _is_time_to_give_back(self) -> bool:
        if not self._until_give_back:
            return False
        self._until_give_back -= 1
        if self._until_give_back:
            return False
        # What was ended since the one before may not be free yet.
        self._until_give_back, self._ended_since = GIVE_BACK_AFTER if self._ended_since else 0, False
        return True

    def _shed(self, now: float, weight: _Weight) -> None:
        grown = self._weighed(weight)
        public = [call for call in grown if call.method.access.public and grown[call] > PUBLIC_BUDGET]
        known = [call for call in grown if not call.method.access.public and grown[call] > self._budget]
        if public:
            self._end(public)
        if not known:
            self._steps.helped()
        elif not self._settling or weight.own > self._ended_with + self._budget // 8:
            self._shed_known(now, max(grown[call] for call in known))
            self._settling, self._ended_with = SETTLE, weight.own

    def _weighed(self, weight: _Weight) -> dict[Call, int]:
        """By how many bytes the process has grown, beside what has grown elsewhere, since each began to arrive; only
        of those of which it is more than any may."""
        lowest = min(self._recent, key=lambda recent: recent.own)
        arriving = (*self._bodies, *self._streams)
        self._levels = {call: self._levels.get(call, lowest).lowered_to(weight) for call in arriving}
        own, least = weight.own, min(PUBLIC_BUDGET, self._budget)
        return {call: grown for call, level in self._levels.items() if (grown := own - level.own) > least}

    def _shed_known(self, now: float, growth: int) -> None:
        """Of all that arrives, whenever it began: what is grown beyond the budget since an old call began may have come
        with the new ones."""
        for by_connection, telling in (
            (self.connections.undelivered(), TELLING),
            (self.connections.received(), TELLING_PINNED),
        ):
            brought = self._share(by_connection, growth)
            if brought and sum(brought.values()) >= growth / telling:
                if heavy := self._heavy(brought, now):
                    self._end(self._steps.next(heavy, self._streams, now))
                return
        # It is not what arrives.
        self._recent.clear()
        self._levels.clear()

    def _heavy(self, brought: Mapping[Call, float], now: float) -> dict[Call, float]:
        """The calls of those who have brought much."""
        totals = _by_caller(brought)
        if now - self._heaviest_at >= LOWEST_OF:
            self._heaviest = 0.0
        if (most := max(totals.values())) >= self._heaviest:
            self._heaviest, self._heaviest_at = most, now
        least = max(LITTLE, self._heaviest / COMPARABLE)
        return {call: size for call, size in brought.items() if totals[call.principal.subject] >= least}

    def _share(self, by_connection: Mapping[str, int], growth: int) -> dict[Call, float]:
        """By each call of a known caller, an equal share of what its connection has brought. Of a connection that is
        not known, an equal part of the growth is taken for it."""
        known = [call for call in (*self._bodies, *self._streams) if not call.method.access.public]
        sharing = Counter(call.connection for call in known)
        unknown = growth / max(1, len(known))
        return {
            call: by_connection[call.connection] / sharing[call.connection]
            if call.connection in by_connection
            else unknown
            for call in known
        }

    def _end(self, calls: Iterable[Call]) -> None:
        for call in calls:
            call.end(InferplaneError.overloaded("requests that arrive slowly hold too much"))
        self._ended_since = self._until_give_back > 0
        self._until_give_back = self._until_give_back or GIVE_BACK_AFTER


def resident_memory(statm: int) -> int:
    """Bytes of this process in memory, by a descriptor of /proc/self/statm (proc_pid_statm(5))."""
    return int(os.pread(statm, 200, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back_free_memory() -> None:
    """Let the process be as large as what it holds (malloc_trim(3)), or what was freed would be taken for held.

    Blocks, for up to a tenth of a second. Where the C library has no such function, more is ended than need be.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
