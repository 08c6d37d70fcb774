"""Turns at having a password evaluated, which costs 64 MiB and a tenth of a second: bounded, and shared fairly."""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_network
from typing import TypeVar
from urllib.parse import unquote

from inferplane.server.auth.devices import UNKNOWN
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import FairGate, GateFullError

__all__ = ["Turns", "address_of"]

T = TypeVar("T")

STRANGERS = 2
"""Passwords of unknown devices that are evaluated at once."""
STRANGERS_WAITING = 64
STRANGERS_WAITING_EACH = 32
KNOWN = 1
"""The same for known devices, which have places of their own: no flood of strangers takes these."""
KNOWN_WAITING = 64
KNOWN_WAITING_EACH = 4
_PREFIX = 64


def address_of(peer: str) -> str:
    """Who sends from there, as far as an address tells: one IPv4 address, or the /64 that one IPv6 host has."""
    scheme, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0]
    if scheme != "ipv6":
        return f"{scheme}:{host}"
    try:
        address = IPv6Address(host.strip("[]").partition("%")[0])
    except ValueError:
        return f"{scheme}:{host}"
    return str(ip_network((address, _PREFIX), strict=False))


class Turns:
    """Lets strangers take turns by address, and known devices by user: each sign-in may make another device.

    What there is no room for is refused; when strangers fill the room, whoever waits with most gives way to others.
    """

    def __init__(self) -> None:
        self._strangers = FairGate(
            capacity=STRANGERS,
            each=STRANGERS,
            waiting=STRANGERS_WAITING,
            waiting_each=STRANGERS_WAITING_EACH,
            displace=True,
        )
        self._known = FairGate(capacity=KNOWN, each=KNOWN, waiting=KNOWN_WAITING, waiting_each=KNOWN_WAITING_EACH)

    async def take(self, device: str, username: str, address: str, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` when it is its turn; raises OVERLOADED where too many wait.

        The place is held until the work is done, even where its caller has left: a thread cannot be stopped.
        """
        gate, caller = (self._strangers, address) if device == UNKNOWN else (self._known, username)
        try:
            await gate.enter(caller, 1)
        except GateFullError:
            raise InferplaneError.overloaded("too many sign-ins at once") from None
        working = asyncio.ensure_future(work())

        def done(work: "asyncio.Future[T]") -> None:
            gate.leave(caller, 1)
            # Looked at, or asyncio complains where the caller has left.
            if not work.cancelled():
                work.exception()

        working.add_done_callback(done)
        return await asyncio.shield(working)
