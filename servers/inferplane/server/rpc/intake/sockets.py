"""The TCP connections that this process has accepted, as the kernel tells of them (tcp(7))."""

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

__all__ = ["Socket", "Sockets"]

_BYTES_RECEIVED = 128
"""Where `tcpi_bytes_received` stands in `struct tcp_info` (linux/tcp.h), since Linux 4.1; `tcpi_state` is its first
byte."""
_LISTENING = 10
_NOWHERE = struct.pack("=H14x", socket.AF_UNSPEC)
"""An address: who connects a TCP socket to it takes its connection away, and the other end learns that it is reset."""
_ROOM = 256
_LIBC = ctypes.CDLL(None)


class Socket(NamedTuple):
    """One of ours: by its number in the file system, which no later one of the same address has. Several of one address
    are taken together."""

    inode: int
    received: int


class Sockets:
    """Accepted connections, by the other end's address as gRPC writes it."""

    def __init__(self) -> None:
        self._ports: set[int] = set()
        """That this process listens on, or did."""
        self._answer, self._size = ctypes.create_string_buffer(_ROOM), ctypes.c_uint32()
        self._by_reference = ctypes.byref(self._size)

    def present(self) -> dict[str, Socket]:
        """Those that are there; none where no descriptor is left to look with."""
        received: dict[int, int] = {}
        for descriptor in _descriptors():
            info = self._ask(_LIBC.getsockopt, descriptor, socket.IPPROTO_TCP, socket.TCP_INFO)
            if len(info) < _BYTES_RECEIVED + 8:
                continue
            if info[0] == _LISTENING:
                self._ports.add(_port(self._ask(_LIBC.getsockname, descriptor)))
            else:
                (received[descriptor],) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
        found: dict[str, Socket] = {}
        for descriptor, size in received.items():
            try:
                inode = os.fstat(descriptor).st_ino
            except OSError:
                # Closed by gRPC's threads meanwhile.
                continue
            if name := self._accepted_from(descriptor):
                # From one address there may be several, one to each of our ports; gRPC calls them all the same.
                others = found.get(name, Socket(0, 0))
                found[name] = Socket(others.inode ^ inode, others.received + size)
        return found

    def hang_up(self, connections: Collection[str]) -> int:
        """Reset these, as if the network had: gRPC then lets go of all that came by them. How many there were."""
        # Of all that listens the ports must be known.
        connections = self.present().keys() & connections
        gone = 0
        for descriptor in _descriptors():
            try:
                # A copy stays the same socket, whatever gRPC's threads close meanwhile.
                copy = os.dup(descriptor)
            except OSError:
                continue
            if self._accepted_from(copy) in connections:
                # What is still in the kernel goes too, as it would not where the socket were shut down (connect(2)).
                gone += not _LIBC.connect(copy, _NOWHERE, len(_NOWHERE))
            os.close(copy)
        return gone

    def _accepted_from(self, descriptor: int) -> str:
        """The other end of a connection that was accepted; nothing of others."""
        if _port(self._ask(_LIBC.getsockname, descriptor)) not in self._ports:
            return ""
        return _name(self._ask(_LIBC.getpeername, descriptor))

    def _ask(self, function: "ctypes._FuncPointer", descriptor: int, *which: int) -> bytes:
        """What a function of the C library writes about a descriptor; nothing where it fails."""
        self._size.value = _ROOM
        failed = function(descriptor, *which, self._answer, self._by_reference)
        return b"" if failed else self._answer.raw[: self._size.value]


def _descriptors() -> list[int]:
    try:
        return [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    except OSError:
        return []


def _port(address: bytes) -> int:
    """Of a `sockaddr_in` or `sockaddr_in6`; 0 of others."""
    return int.from_bytes(address[2:4], "big") if _is_internet(address) else 0


def _name(address: bytes) -> str:
    """A `sockaddr_in` or `sockaddr_in6` as gRPC writes it; nothing of others."""
    if not _is_internet(address):
        return ""
    port = _port(address)
    if _family(address) == socket.AF_INET:
        return f"ipv4:{IPv4Address(address[4:8])}:{port}"
    host = IPv6Address(address[8:24])
    return f"ipv4:{host.ipv4_mapped}:{port}" if host.ipv4_mapped else f"ipv6:%5B{host}%5D:{port}"


def _is_internet(address: bytes) -> bool:
    return len(address) >= 16 and _family(address) in (socket.AF_INET, socket.AF_INET6)


def _family(address: bytes) -> int:
    return int.from_bytes(address[:2], sys.byteorder)
