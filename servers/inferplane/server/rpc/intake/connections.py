"""What connections have received, and how much of it may still be in memory.

gRPC does not tell how much of a message is there, but the kernel counts what a connection has received, and we what
came out of it as messages. What is undelivered has headers in it too, some hundred bytes a call, and what was thrown
away. So only what came since the oldest open call of the connection began counts, and what came in the seconds before.

What is not whole may keep more in memory than it has itself: of each frame gRPC holds all that it read together with
it, until the frame's message is read or its call is over. That is at most what the connection has received at all
since its oldest open call began. Of headers more may be kept than came: those that were sent before are a byte each.
"""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple, Protocol

from inferplane.server.rpc.intake.sockets import Socket

__all__ = ["Connections", "OpenCall"]

EVER = float("-inf")
INTERVAL = 0.2
"""Seconds from sample to sample, sooner where a new connection begins to bring something; where there are hundreds,
SHARE times as long as a sample takes."""
SHARE = 50
MOST_SAMPLES = 64
"""Of one connection; beyond them the older ones become fewer."""
HEADERS_COUNT = 2
"""Times, beside what came. As they are measured an entry is 33 bytes or more, and takes 170; its call takes 20 KiB
beside, and a quarter of what a process has grown by may have come before the moment since which is counted."""


class OpenCall(Protocol):
    """A call of which gRPC may hold something."""

    @property
    def connection(self) -> str:
        """As gRPC's `peer()` says it."""

    @property
    def started(self) -> float:
        """On the monotonic clock."""

    @property
    def delivered(self) -> int:
        """Bytes of its messages so far."""

    @property
    def headers(self) -> int:
        """Bytes, with 32 for each."""


class _Counts(NamedTuple):
    """What a connection has received, and how much of it was not delivered."""

    received: int
    undelivered: int


class _Sample(NamedTuple):
    """The same as it was `at` some moment."""

    at: float
    received: int
    undelivered: int


_at = attrgetter("at")


@dataclass(slots=True)
class _Known:
    inode: int
    samples: list[_Sample]
    """The first is what is compared with."""
    called_at: float = EVER
    """When calls of it were open last."""


class Connections:
    """Counts what was delivered of each connection, and samples what was received. `open_calls` are those that go on;
    what came in `window` seconds before counts with them."""

    def __init__(
        self,
        window: float,
        open_calls: Callable[[], Iterable[OpenCall]],
        sockets: Callable[[], Mapping[str, Socket]],
    ) -> None:
        self._sockets = sockets
        self._window = window
        self._open_calls = open_calls
        self._delivered: Counter[str] = Counter()
        self._known: dict[str, _Known] = {}
        self._next = self._soonest = EVER

    def deliver(self, connection: str, size: int) -> None:
        """A message of `size` bytes is whole."""
        self._delivered[connection] += size

    def expect(self, connection: str) -> None:
        """Something comes from there: the connection must be sampled before that is delivered."""
        if connection not in self._known:
            self._next = min(self._next, self._soonest)

    def sample(self, now: float) -> None:
        """Remember how things stand, once in a while. `now` is on the monotonic clock."""
        if now < self._next:
            return
        began = time.perf_counter()
        oldest = self._oldest()
        present = self._present()
        for connection, counts in present.items():
            if connection in oldest:
                self._known[connection].called_at = now
            samples = self._known[connection].samples
            samples.append(_Sample(now, *counts))
            needed = min(now - self._window, oldest.get(connection, now))
            while samples[1].at <= needed:
                del samples[0]
            if len(samples) > MOST_SAMPLES:
                del samples[2 : MOST_SAMPLES // 2 : 2]
        if present:
            # Else there was no descriptor left to look with, or nobody is there.
            self._known = {connection: self._known[connection] for connection in present}
            self._delivered = Counter({connection: self._delivered[connection] for connection in present})
        pause = SHARE * (time.perf_counter() - began)
        self._next, self._soonest = now + max(INTERVAL, pause), now + pause

    def undelivered(self, since: float = EVER) -> dict[str, int]:
        """Bytes of each connection that were received and not delivered, without what came before `since`."""
        return {
            connection: max(0, counts.undelivered - self._before(connection, since).undelivered)
            for connection, counts in self._present().items()
        }

    def kept(self, since: float = EVER) -> dict[str, int]:
        """Bytes of each connection by which gRPC may keep something, without what came before `since`: all that came
        while calls of it were open, and the headers of these, or where no call is open, what belongs to none."""
        oldest = self._oldest()
        headers: Counter[str] = Counter()
        for call in self._open_calls():
            if call.started >= since:
                headers[call.connection] += call.headers
        kept = {}
        for connection, counts in self._present().items():
            if connection in oldest:
                before = self._before(connection, max(since, oldest[connection]))
                kept[connection] = counts.received - before.received + headers[connection] * HEADERS_COUNT
            else:
                before = self._before(connection, max(since, self._known[connection].called_at))
                kept[connection] = max(0, counts.undelivered - before.undelivered)
        return kept

    def _before(self, connection: str, moment: float) -> _Sample:
        """The last sample before it, or the first."""
        samples = self._known[connection].samples
        return samples[max(0, bisect_right(samples, moment, key=_at) - 1)]

    def _oldest(self) -> dict[str, float]:
        """When the oldest open call of each connection began."""
        oldest: dict[str, float] = {}
        for call in self._open_calls():
            oldest[call.connection] = min(call.started, oldest.get(call.connection, call.started))
        return oldest

    def _present(self) -> dict[str, _Counts]:
        sockets = self._sockets()
        if any(self._is_new(connection, socket) for connection, socket in sockets.items()):
            self._begin(sockets)
        return {
            connection: _Counts(socket.received, socket.received - self._delivered[connection])
            for connection, socket in sockets.items()
        }

    def _is_new(self, connection: str, socket: Socket) -> bool:
        known = self._known.get(connection)
        return known is None or known.inode != socket.inode

    def _begin(self, sockets: Mapping[str, Socket]) -> None:
        """Count new connections from their beginnings. What was delivered from there may have come by an earlier one
        of the same address; only of calls that still go on it is certain that it did not."""
        certain: Counter[str] = Counter()
        for call in self._open_calls():
            certain[call.connection] += call.delivered
        for connection, socket in sockets.items():
            if self._is_new(connection, socket):
                self._delivered[connection] = certain[connection]
                self._known[connection] = _Known(socket.inode, [_Sample(EVER, 0, 0)])
