"""What arrives slowly: bodies, and messages of streams, that are not whole yet.

Nobody but gRPC knows how much of one is there. So the process is weighed: by how much it has grown above the least that
it took in the ten seconds before something began to arrive. Where that is too much, some of it is ended, and more each
time that this was not enough, of those whose connections have brought most; where that is not the reason, or did not
help, whole connections (decision 0008).
"""

import ctypes
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import structlog

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import ANONYMOUS
from inferplane.server.rpc.call import Call
from inferplane.server.rpc.connections import Connections, OpenCall
from inferplane.server.rpc.peers import address_of
from inferplane.server.rpc.shedding import Closings, Steps
from inferplane.server.rpc.sockets import Socket
from inferplane.server.rpc.weights import Weight, Weights

__all__ = ["LOOK_INTERVAL", "Arrivals", "give_back_free_memory", "resident_memory"]

log = structlog.get_logger()

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
TELLING = 2
"""Where all together have brought less than this part of what the process has grown by, it is not that; the same of all
that may be kept."""
SMALL = 4
"""What came before the process had last grown by less than this part of the budget counts no more."""
MOST_NAMED = 10
"""In one line of the log."""


class _Sockets(Protocol):
    def present(self) -> Mapping[str, Socket]: ...
    def hang_up(self, connections: Collection[str], /) -> None: ...


class Arrivals:
    """Bounds what arrives slowly: known callers' to a growth of `budget` bytes, which must be whole after `time_limit`
    seconds, that of public methods to 64 MiB and 5 seconds. `open_calls` are all of which gRPC may hold something."""

    def __init__(
        self, budget: int, time_limit: float, open_calls: Callable[[], Collection[Call]], sockets: "_Sockets"
    ) -> None:
        self.connections = Connections(LOWEST_OF, lambda: map(_as_open, open_calls()), sockets.present)
        self._sockets = sockets
        self._open_calls = open_calls
        self._budget = budget
        self._time_limit = time_limit
        self._bodies: dict[Call, float] = {}
        self._streams: dict[Call, float] = {}
        self._now = float("-inf")
        self._weights = Weights()
        self._steps = Steps()
        self._closings = Closings()
        self._until_give_back = self._settling = 0
        self._ended_since = False
        self._ended_with = 0
        self._began = self._small_at = self._stepped_at = float("-inf")
        self.held_elsewhere: Callable[[], int] = lambda: 0
        """Bytes that this process holds for something else, and will let go: they are not weighed."""

    def body(self, call: Call, since: float) -> None:
        """A body has been arriving `since` then, on the monotonic clock."""
        self._bodies[call] = since

    def message(self, call: Call) -> None:
        """The next message of a stream is waited for. Streams have limits of their own for the time."""
        self._streams[call] = self._now

    def over(self, call: Call) -> None:
        """It is whole, or its call has ended."""
        self._bodies.pop(call, None)
        self._streams.pop(call, None)

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
        weight = Weight(resident, self.held_elsewhere())
        self._weights.add(now, weight)
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

    def _shed(self, now: float, weight: Weight) -> None:
        public = [call for call, since in self._arriving() if call.method.access.public and self._is_large(since)]
        if public:
            self._end(public)
        oldest = min((call.started for call in self._open_calls()), default=now)
        # While steps are taken, what began before them is not forgotten: or those who go and come again in turns would
        # each find what the others hold there.
        self._began = oldest if now - self._stepped_at >= LOWEST_OF else min(oldest, self._began)
        growth = self._grown_since(self._began)
        if growth <= self._budget // SMALL:
            self._small_at = now
        if growth <= self._budget:
            self._steps.helped()
            self._closings.helped(now)
        elif not self._settling or weight.own > self._ended_with + self._budget // 8:
            self._shed_most(now, growth)
            self._settling, self._ended_with, self._stepped_at = SETTLE, weight.own, now

    def _arriving(self) -> list[tuple[Call, float]]:
        return [*self._bodies.items(), *self._streams.items()]

    def _is_large(self, since: float) -> bool:
        return self._grown_since(since) > min(PUBLIC_BUDGET, self._budget)

    def _grown_since(self, moment: float) -> int:
        """By how many bytes the process has grown, beside what has grown elsewhere, since something began then."""
        return self._weights.grown_since(moment - LOWEST_OF)

    def _shed_most(self, now: float, growth: int) -> None:
        """Of all that arrives, whenever it began: what is grown beyond the budget since an old call began may have come
        with the new ones."""
        brought = self._share(self.connections.undelivered(self._small_at), growth)
        explained = brought and sum(brought.values()) >= growth / TELLING and not self._steps.were_in_vain(now)
        if explained and (going := self._steps.next(brought, self._streams, now)):
            self._end(going)
            return
        kept = self.connections.kept(self._small_at)
        if kept and sum(kept.values()) >= growth / TELLING:
            self._hang_up(self._closings.next(self._by_owner(kept), growth, now), growth)
            return
        # It is nothing that came.
        self._weights = Weights()

    def _share(self, by_connection: Mapping[str, int], growth: int) -> dict[Call, float]:
        """By each call of a known caller, an equal share of what its connection has brought. Of a connection that is
        not known, an equal part of the growth is taken for it."""
        known = [call for call, _ in self._arriving() if not call.method.access.public]
        sharing = Counter(call.connection for call in known)
        unknown = growth / max(1, len(known))
        return {
            call: by_connection[call.connection] / sharing[call.connection]
            if call.connection in by_connection
            else unknown
            for call in known
        }

    def _by_owner(self, kept: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """The same by who has the oldest call of each connection, the address where nobody is known."""
        owners = {connection: address_of(connection) for connection in kept}
        for call in sorted(self._open_calls(), key=lambda call: call.started, reverse=True):
            if call.principal is not ANONYMOUS:
                owners[call.connection] = call.principal.subject
        grouped: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for connection, size in kept.items():
            grouped[owners[connection]][connection] = size
        return grouped

    def _end(self, calls: Iterable[Call]) -> None:
        for call in calls:
            call.end(InferplaneError.overloaded("requests that arrive slowly hold too much"))
        self._give_back_soon()

    def _hang_up(self, going: Mapping[str, Collection[str]], growth: int) -> None:
        connections = {connection for theirs in going.values() for connection in theirs}
        log.warning(
            "connections_closed",
            reason="the process has grown too large since their calls began",
            callers=list(going)[:MOST_NAMED],
            connections=len(connections),
            grown_bytes=growth,
        )
        self._sockets.hang_up(connections)
        self._give_back_soon()

    def _give_back_soon(self) -> None:
        self._ended_since = self._until_give_back > 0
        self._until_give_back = self._until_give_back or GIVE_BACK_AFTER


def _as_open(call: Call) -> OpenCall:
    return OpenCall(call.connection, call.started, call.delivered)


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
