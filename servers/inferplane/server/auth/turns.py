"""Turns at having a password evaluated, which costs 64 MiB and a tenth of a second: bounded, and shared fairly."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from inferplane.server.auth.devices import UNKNOWN
from inferplane.server.fairness import FairGate
from inferplane.server.tasks import start_task

__all__ = ["Turns"]

T = TypeVar("T")

_FULL = "too many sign-ins at once"
STRANGERS = 2
"""Passwords of unknown devices that are evaluated at once."""
STRANGERS_WAITING = 64
STRANGERS_WAITING_EACH = 32
KNOWN = 1
"""The same for known devices, which have places of their own: no flood of strangers takes these."""
KNOWN_WAITING = 64
KNOWN_WAITING_EACH = 4


class Turns:
    """Lets strangers take turns by address, and known devices by user: each sign-in may make another device.

    What there is no room for is refused; when strangers fill the room, whoever waits with most gives way to others.
    """

    def __init__(self) -> None:
        self._strangers = FairGate(
            _FULL,
            capacity=STRANGERS,
            each=STRANGERS,
            waiting=STRANGERS_WAITING,
            waiting_each=STRANGERS_WAITING_EACH,
            displace=True,
        )
        self._known = FairGate(
            _FULL, capacity=KNOWN, each=KNOWN, waiting=KNOWN_WAITING, waiting_each=KNOWN_WAITING_EACH
        )

    async def take(self, device: str, username: str, address: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do `work` when it is its turn; raises OVERLOADED where too many wait.

        The place is held until the work is done, even where its caller has left: a thread cannot be stopped.
        """
        gate, caller = (self._strangers, address) if device == UNKNOWN else (self._known, username)
        await gate.enter(caller, 1)
        working = start_task(work())

        def done(work: "asyncio.Future[T]") -> None:
            gate.leave(caller, 1)
            # Looked at, or asyncio complains where the caller has left.
            if not work.cancelled():
                work.exception()

        working.add_done_callback(done)
        return await asyncio.shield(working)
