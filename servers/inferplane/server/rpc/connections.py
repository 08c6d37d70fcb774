"""Which connections bring what is not whole yet.

gRPC does not tell how much of a message is there, but the kernel counts what a connection has received (TCP_INFO,
tcp(7)), and we what came out of it. Headers are in the difference too, some hundred bytes a call, and what was thrown
away. So only what came since something began to arrive counts, and what came in the seconds before.

What is not whole may keep more in memory than it has itself: of each frame gRPC holds all that it read together with
it. So it matters, too, how much a connection has received at all since what is arriving there began to.
"""

import ctypes
import os
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

__all__ = ["Arriving", "Connections", "Socket", "sockets_of_this_process"]

_TCP = 6
_TCP_INFO = 11
_BYTES_RECEIVED = 128
"""Where `tcpi_bytes_received` stands in `struct tcp_info` (linux/tcp.h), since Linux 4.1."""
_INET = 2
INTERVAL = 0.2
"""Seconds from sample to sample, sooner where a new connection begins to bring something; where there are thousands,
SHARE times as long as a sample takes."""
SHARE = 50
MOST_SAMPLES = 64
"""Of one connection; beyond them the older ones become fewer."""


class Arriving(NamedTuple):
    """A call of which something arrives, `since` then on the monotonic clock, and what of it was `delivered`."""

    connection: str
    since: float
    delivered: int


class Socket(NamedTuple):
    """One of ours: by its number in the file system, which no later one of the same address has. Several of one address
    are taken together."""

    inode: int
    received: int


class _Sample(NamedTuple):
    """What a connection had brought `at` then, and how much of it was not `delivered`."""

    at: float
    received: int
    undelivered: int


@dataclass(slots=True)
class _Known:
    inode: int
    samples: list[_Sample]
    """The first is what is compared with."""


class Connections:
    """Counts what was delivered of each connection, by its address as gRPC's `peer()` says it, and samples what was
    received. `arriving` tells what arrives now; what came in `window` seconds before counts with it."""

    def __init__(
        self,
        window: float,
        arriving: Callable[[], Iterable[Arriving]],
        sockets: Callable[[], Mapping[str, Socket]],
    ) -> None:
        self._sockets = sockets
        self._window = window
        self._arriving = arriving
        self._delivered: Counter[str] = Counter()
        self._known: dict[str, _Known] = {}
        self._next = self._soonest = float("-inf")

    def deliver(self, connection: str, size: int) -> None:
        """A message of `size` bytes is whole."""
        self._delivered[connection] += size

    def expect(self, connection: str) -> None:
        """Something comes from there; that it is there is to be known before that is delivered."""
        if connection not in self._known:
            self._next = min(self._next, self._soonest)

    def sample(self, now: float) -> None:
        """Remember how things stand, once in a while. `now` is on the monotonic clock."""
        if now < self._next:
            return
        began = time.perf_counter()
        oldest = self._oldest()
        present = self._present(now)
        for connection, sample in present.items():
            samples = self._known[connection].samples
            samples.append(sample)
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

    def undelivered(self) -> Mapping[str, int]:
        """How many more bytes than were delivered each connection has brought."""
        return {
            connection: max(0, sample.undelivered - self._known[connection].samples[0].undelivered)
            for connection, sample in self._present(0.0).items()
        }

    def received(self) -> Mapping[str, int]:
        """How many bytes each connection by which something arrives has received since that began, or somewhat
        later."""
        oldest = self._oldest()
        return {
            connection: sample.received - self._received_at(connection, oldest[connection], sample.received)
            for connection, sample in self._present(0.0).items()
            if connection in oldest
        }

    def _received_at(self, connection: str, moment: float, now: int) -> int:
        """By the first sample after it; what came in between may be anybody's."""
        samples = self._known[connection].samples
        return next((sample.received for sample in samples if sample.at >= moment), now)

    def _oldest(self) -> dict[str, float]:
        """Since when something arrives by each connection."""
        oldest: dict[str, float] = {}
        for call in self._arriving():
            oldest[call.connection] = min(call.since, oldest.get(call.connection, call.since))
        return oldest

    def _present(self, now: float) -> dict[str, _Sample]:
        sockets = self._sockets()
        if any(self._is_new(connection, socket) for connection, socket in sockets.items()):
            self._begin(sockets)
        return {
            connection: _Sample(now, socket.received, socket.received - self._delivered[connection])
            for connection, socket in sockets.items()
        }

    def _is_new(self, connection: str, socket: Socket) -> bool:
        known = self._known.get(connection)
        return known is None or known.inode != socket.inode

    def _begin(self, sockets: Mapping[str, Socket]) -> None:
        """Count new connections from their beginnings. What was delivered from there may have come by an earlier one
        of the same address; only of calls that still go on it is certain that it did not."""
        certain: Counter[str] = Counter()
        for call in self._arriving():
            certain[call.connection] += call.delivered
        for connection, socket in sockets.items():
            if self._is_new(connection, socket):
                self._delivered[connection] = certain[connection]
                self._known[connection] = _Known(socket.inode, [_Sample(float("-inf"), 0, 0)])


def sockets_of_this_process() -> dict[str, Socket]:
    """The TCP connections of this process; none where no descriptor is left."""
    libc = ctypes.CDLL(None)
    info, address = ctypes.create_string_buffer(256), ctypes.create_string_buffer(128)
    size = ctypes.c_uint32()
    try:
        descriptors = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    except OSError:
        return {}
    found: dict[str, Socket] = {}
    for descriptor in descriptors:
        size.value = len(info)
        if libc.getsockopt(descriptor, _TCP, _TCP_INFO, info, ctypes.byref(size)) or size.value < _BYTES_RECEIVED + 8:
            continue
        size.value = len(address)
        if libc.getpeername(descriptor, address, ctypes.byref(size)):
            continue
        try:
            inode = os.fstat(descriptor).st_ino
        except OSError:
            # Closed by gRPC's threads meanwhile.
            continue
        # From one address there may be several, one to each of our ports; gRPC calls them all the same.
        others = found.get(name := _name(address.raw), Socket(0, 0))
        (received,) = struct.unpack_from("=Q", info.raw, _BYTES_RECEIVED)
        found[name] = Socket(others.inode ^ inode, others.received + received)
    return found


def _name(address: bytes) -> str:
    """A `sockaddr_in` or `sockaddr_in6` as gRPC writes it."""
    (family,) = struct.unpack_from("=H", address)
    (port,) = struct.unpack_from("!H", address, 2)
    if family == _INET:
        return f"ipv4:{IPv4Address(address[4:8])}:{port}"
    host = IPv6Address(address[8:24])
    return f"ipv4:{host.ipv4_mapped}:{port}" if host.ipv4_mapped else f"ipv6:%5B{host}%5D:{port}"
