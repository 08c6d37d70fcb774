"""Password hashing: argon2id with the second recommended parameters of RFC 9106, off the event loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from argon2 import Parameters, PasswordHasher, profiles
from argon2.exceptions import InvalidHashError, VerificationError

from inferplane.server.tasks import start_task

__all__ = ["Passwords"]

T = TypeVar("T")

PARAMETERS = profiles.RFC_9106_LOW_MEMORY


class Passwords:
    """Hashes and verifies passwords. New ones are hashed one at a time: each takes 64 MiB. Who verifies takes turns
    (`turns.py`)."""

    def __init__(self, parameters: Parameters | None = None) -> None:
        self._hasher = PasswordHasher.from_parameters(parameters or PARAMETERS)
        self._hashing = asyncio.Lock()
        self._decoy: str | None = None
        self._under_way = 0

    @property
    def held(self) -> int:
        """Bytes that the evaluations under way take."""
        return self._under_way * self._hasher.memory_cost << 10

    async def hash(self, password: str) -> str:
        """The encoded hash, with its salt and parameters."""
        async with self._hashing:
            return await self._evaluate(self._hasher.hash, password)

    async def verify(self, encoded: str | None, password: str) -> bool:
        """Whether `password` is the one. Takes the same time where there is no such user (`encoded` is None)."""
        if encoded is None:
            if self._decoy is None:
                self._decoy = await self.hash("decoy")
            await self._matches(self._decoy, password)
            return False
        return await self._matches(encoded, password)

    async def _evaluate(self, function: Callable[..., T], *arguments: str) -> T:
        def done(_work: "asyncio.Future[T]") -> None:
            self._under_way -= 1

        self._under_way += 1
        work = start_task(asyncio.to_thread(function, *arguments))
        work.add_done_callback(done)
        # A thread goes on where its caller has left, and so does what it holds.
        return await asyncio.shield(work)

    async def _matches(self, encoded: str, password: str) -> bool:
        try:
            return await self._evaluate(self._hasher.verify, encoded, password)
        except (VerificationError, InvalidHashError):
            return False
