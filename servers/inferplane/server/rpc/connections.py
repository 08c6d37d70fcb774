"""Which connections bring what is not whole yet.

gRPC does not tell how much of a message is there, but the kernel counts what a connection has received (TCP_INFO,
tcp(7)), and we what came out of it. Headers and frames are in the difference too, a few bytes a call; so is what was
thrown away.
"""

import ctypes
import struct
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

__all__ = ["Connections"]

_TCP = 6
_TCP_INFO = 11
_BYTES_RECEIVED = 128
"""Where `tcpi_bytes_received` stands in `struct tcp_info` (linux/tcp.h), since Linux 4.1."""
_INET, _INET6 = 2, 10
SAMPLES = 6


class Connections:
    """Counts what was delivered of each connection, by its address as gRPC's `peer()` says it, and samples what was
    received; `window` is in seconds, and should be as long as a message may take to arrive."""

    def __init__(self, window: float) -> None:
        self._delivered: Counter[str] = Counter()
        self._interval = window / SAMPLES
        self._sampled = float("-inf")
        self._samples: deque[Mapping[str, int]] = deque(maxlen=SAMPLES + 1)

    def deliver(self, connection: str, size: int) -> None:
        """A message of `size` bytes is whole."""
        self._delivered[connection] += size

    def sample(self, now: float) -> None:
        """Remember how things stand, once in a while: what came before the window is not counted any more."""
        if now - self._sampled < self._interval:
            return
        self._sampled = now
        left = self._left()
        self._samples.append(left)
        self._delivered = Counter({connection: self._delivered[connection] for connection in left})

    def undelivered(self) -> Mapping[str, int]:
        """By how many bytes what was received has grown beyond what was delivered in about the window."""
        before = self._samples[0] if self._samples else {}
        return {connection: left - before.get(connection, 0) for connection, left in self._left().items()}

    def _left(self) -> dict[str, int]:
        return {connection: received - self._delivered[connection] for connection, received in _received()}


def _received() -> Iterator[tuple[str, int]]:
    """Each TCP connection of this process and how many bytes it has received; none where no descriptor is left."""
    libc = ctypes.CDLL(None)
    info, address = ctypes.create_string_buffer(256), ctypes.create_string_buffer(128)
    size = ctypes.c_uint32()
    try:
        descriptors = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    except OSError:
        return
    for descriptor in descriptors:
        size.value = len(info)
        if libc.getsockopt(descriptor, _TCP, _TCP_INFO, info, ctypes.byref(size)):
            continue
        if size.value < _BYTES_RECEIVED + 8:
            continue
        size.value = len(address)
        if libc.getpeername(descriptor, address, ctypes.byref(size)):
            continue
        yield _name(address.raw), struct.unpack_from("=Q", info.raw, _BYTES_RECEIVED)[0]


def _name(address: bytes) -> str:
    """A `sockaddr_in` or `sockaddr_in6` as gRPC writes it."""
    (family,) = struct.unpack_from("=H", address)
    (port,) = struct.unpack_from("!H", address, 2)
    if family == _INET:
        return f"ipv4:{IPv4Address(address[4:8])}:{port}"
    host = IPv6Address(address[8:24])
    return f"ipv4:{host.ipv4_mapped}:{port}" if host.ipv4_mapped else f"ipv6:%5B{host}%5D:{port}"
