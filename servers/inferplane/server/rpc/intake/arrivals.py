"""What arrives slowly: bodies, and messages of streams, that are not whole yet.

Nobody but gRPC knows how much of one is there. So the process is weighed: by how much it has grown above the least that
it took in the ten seconds before the oldest open call began, and for public methods before something of theirs began to
arrive. Where that is too much, calls are ended, and where these are not the reason, or it did not help, whole
connections are closed, more each time (decisions 0008 and 0036).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from typing import Protocol

import structlog

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import ANONYMOUS
from inferplane.server.rpc.call import Call
from inferplane.server.rpc.intake.connections import Connections
from inferplane.server.rpc.intake.growth import LOWEST_OF, Growth, Weight
from inferplane.server.rpc.intake.process_memory import GivingBack
from inferplane.server.rpc.intake.shedding import DEAREST, CallsToEnd, ConnectionsToClose, Kept, total
from inferplane.server.rpc.intake.sockets import Socket
from inferplane.server.rpc.peers import address_of

__all__ = ["LOOK_INTERVAL", "Arrivals"]

log = structlog.get_logger()

LOOK_INTERVAL = 0.05
FREE_AFTER = 0.15
"""Seconds from the end of calls until what they held is free."""
FASTER = 1 / 8
"""Of the budget. Where the process has grown by more since the last step, the next one does not wait for what that has
freed."""
PUBLIC_TIME_LIMIT = 5.0
PUBLIC_BUDGET = 64 << 20
MOST_PUBLIC = 256
"""Slow bodies of public methods; beyond them the oldest goes."""
TELLING = 1 / 2
"""Of the growth. Where all together have brought less, it is not that."""
SMALL = 1 / 4
"""Of the budget. What came before the last moment at which the growth was no more does not count: no more can be left
of it."""
WATCHED = 600.0
"""Seconds for which what is free is given back now and then, when a process has grown by itself."""
PART = 1 / 8
"""Of the budget of public methods: a stranger's connection that has brought more is closed when that is used up."""
MOST_NAMED = 10
"""Callers in one line of the log."""


class _Sockets(Protocol):
    def present(self) -> Mapping[str, Socket]: ...
    def hang_up(self, connections: Collection[str], /) -> int: ...


class Arrivals:
    """Bounds what arrives slowly: known callers' to a growth of `budget` bytes, which must be whole after `time_limit`
    seconds, that of public methods to 64 MiB and 5 seconds. `open_calls` are all of which gRPC may hold something, the
    oldest first."""

    def __init__(
        self, budget: int, time_limit: float, open_calls: Callable[[], Collection[Call]], sockets: _Sockets
    ) -> None:
        self.connections = Connections(LOWEST_OF, open_calls, sockets.present)
        self._hang_up = sockets.hang_up
        self._open_calls = open_calls
        self._budget = budget
        self._time_limit = time_limit
        self._bodies: dict[Call, float] = {}
        self._streams: dict[Call, float] = {}
        self._looked = float("-inf")
        self._growth = Growth()
        self._small_at = float("-inf")
        self._to_end = CallsToEnd()
        self._to_close = ConnectionsToClose()
        self._is_over = self._is_checked = False
        self._watch_until = self._watched_at = float("-inf")
        self._free_at = self._closed_at = float("-inf")
        self._stepped_with = float("inf")
        self._giving_back = GivingBack()
        self.held_elsewhere: Callable[[], int] = lambda: 0
        """Bytes that this process holds for something else, and will let go: they are not weighed."""

    def body(self, call: Call, since: float) -> None:
        """A body has been arriving `since` then, on the monotonic clock."""
        self._bodies[call] = since

    def message(self, call: Call) -> None:
        """The next message of a stream is waited for. Streams have limits of their own for the time."""
        self._streams[call] = self._looked

    def over(self, call: Call) -> None:
        """It is whole, or its call has ended."""
        self._bodies.pop(call, None)
        self._streams.pop(call, None)

    def look(self, now: float, resident: int) -> bool:
        """End what takes too long or holds too much in a process of `resident` bytes; whether it is time to give back
        what was freed."""
        self.connections.sample(now)
        for call, since in list(self._bodies.items()):
            if now - since > (PUBLIC_TIME_LIMIT if call.method.access.public else self._time_limit):
                call.end(InferplaneError(ErrorReason.ERROR_REASON_STREAM_STALLED))
        public = [call for call in self._bodies if call.method.access.public]
        for call in public[: max(0, len(public) - MOST_PUBLIC)]:
            call.end(InferplaneError.overloaded("too many requests arrive slowly"))
        self._looked = now
        self._growth.add(now, Weight(resident, self.held_elsewhere()))
        self._shed_public()
        self._shed(now)
        if self._watched_at + LOWEST_OF < now < self._watch_until:
            # What it had grown by may be free by now, and would be room that is not counted.
            self._watched_at = now
            self._giving_back.ask(now)
        return self._giving_back.is_due(now)

    def given_back(self) -> None:
        """What `look` said that it is time for has been done."""
        self._giving_back.done()

    def _shed_public(self) -> None:
        most = min(PUBLIC_BUDGET, self._budget)
        too_much = [
            call for call, since in self._arriving() if call.method.access.public and self._growth.since(since) > most
        ]
        if too_much:
            pouring = self._pouring_strangers({call.connection for call in too_much}, most)
            if pouring:
                # As much again would come while hundreds of calls are ended one by one.
                self._close(pouring)
            self._end(call for call in too_much if call.connection not in pouring)

    def _pouring_strangers(self, connections: Container[str], most: int) -> dict[str, int]:
        """Those connections by which only strangers send, and at least PART of it."""
        known = {call.connection for call in self._open_calls() if call.principal is not ANONYMOUS}
        return {
            connection: size
            for connection, size in self.connections.undelivered().items()
            if size > most * PART and connection in connections and connection not in known
        }

    def _shed(self, now: float) -> None:
        growth = self._growth.since_oldest(next((call.started for call in self._open_calls()), now), now)
        if growth > self._budget:
            self._shed_most(now, growth)
        elif self._is_over:
            self._is_over = False
            self._to_end.helped()
            self._to_close.helped(self._kept(), now)
        if growth <= self._budget * SMALL:
            self._small_at = now

    def _shed_most(self, now: float, growth: int) -> None:
        """What is free counts as grown until it has been given back: so a step is taken when it has been."""
        resident = self._growth.weight.resident
        is_certain = self._giving_back.done_since >= self._free_at
        if not self._is_over:
            self._is_over, self._is_checked = True, False
            self._to_close.begin(self._kept(), growth)
            self._free_at, self._stepped_with = now, float("inf")
        elif is_certain or resident > self._stepped_with + self._budget * FASTER:
            self._step(now, growth, is_certain=is_certain)
            self._growth.hold(now)
            self._free_at, self._stepped_with = now + FREE_AFTER, resident
        else:
            return
        self._giving_back.ask(self._free_at)

    def _step(self, now: float, growth: int, *, is_certain: bool) -> None:
        """End calls, or close connections where these have not brought what the process has grown by, or all went in
        vain; where the connections are not the reason either, it has grown by itself."""
        brought = self._share(self.connections.undelivered(self._small_at), growth)
        explained = sum(brought.values()) >= growth * TELLING and not self._to_end.were_in_vain(now)
        if explained and (calls := self._to_end.next(brought, self._streams, now)):
            self._end(calls)
            return
        kept = self._kept()
        came_again = sum(self.connections.kept(self._closed_at).values()) >= growth * TELLING
        if self._to_close.have_left(kept) and not self._is_checked:
            # They may be the reason, and what they had not be given back.
            self._is_checked = True
        elif total(kept) * DEAREST < growth or (is_certain and self._to_close.all_went_in_vain(came_again)):
            # So little has come, or all went in vain.
            self._growth.forget()
            self._is_over = False
            self._watch_until = now + WATCHED
        else:
            going = self._to_close.next(kept, growth, now, came_again=came_again)
            self._close({connection: size for theirs in going.values() for connection, size in theirs.items()})
            self._closed_at = now

    def _arriving(self) -> list[tuple[Call, float]]:
        """Calls, and since when something of theirs arrives."""
        return [*self._bodies.items(), *self._streams.items()]

    def _share(self, by_connection: Mapping[str, int], growth: int) -> dict[Call, float]:
        """By each call of a known caller of which something arrives, an equal share of what its connection has brought.
        Whenever it began: what is grown beyond the budget since an old call began may have come with the new ones. Of a
        connection that is not known, an equal part of the growth is taken for it."""
        known = [call for call, _ in self._arriving() if not call.method.access.public]
        sharing = Counter(call.connection for call in known)
        unknown = growth / max(1, len(known))
        return {
            call: by_connection[call.connection] / sharing[call.connection]
            if call.connection in by_connection
            else unknown
            for call in known
        }

    def _kept(self) -> Kept:
        """What may be kept, by the owners of the connections."""
        kept = self.connections.kept(self._small_at)
        grouped: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for connection, owner in self._owners(kept).items():
            grouped[owner][connection] = kept[connection]
        return grouped

    def _owners(self, connections: Iterable[str]) -> dict[str, str]:
        """Who has the oldest call of each, or the address where nobody is known."""
        owners = {connection: address_of(connection) for connection in connections}
        for call in reversed([*self._open_calls()]):
            if call.principal is not ANONYMOUS and call.connection in owners:
                owners[call.connection] = call.principal.subject
        return owners

    def _end(self, calls: Iterable[Call]) -> None:
        for call in calls:
            call.end(InferplaneError.overloaded("requests that arrive slowly hold too much"))
        self._giving_back.ask(self._looked + FREE_AFTER)

    def _close(self, connections: Mapping[str, int]) -> None:
        owners = self._owners(connections)
        log.warning(
            "connections_closed",
            callers=sorted(set(owners.values()))[:MOST_NAMED],
            connections=self._hang_up(connections),
            kept_bytes=sum(connections.values()),
            process_bytes=self._growth.weight.resident,
        )
        self._giving_back.ask(self._looked + FREE_AFTER)
