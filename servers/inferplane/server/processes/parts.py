"""Parts that `up` runs beside the services: each is started again whenever it ends."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import structlog

from inferplane.server.backoff import Backoff

__all__ = ["KeptPart"]

log = structlog.get_logger()

FIRST_PAUSE = 0.1
MOST_PAUSE = 5.0


class KeptPart:
    """A running part, which `start` starts again when `wait` says that it has ended; `restarts` counts the tries."""

    def __init__(self, name: str, wait: Callable[[], Awaitable[int]], start: Callable[[], Awaitable[None]]) -> None:
        self.restarts = 0
        self._name = name
        self._wait = wait
        self._start = start

    def keep(self, stack: AsyncExitStack) -> None:
        """Watch the part until the stack is unwound."""
        task = asyncio.create_task(self._watch(), name=f"keep {self._name}")

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        stack.push_async_callback(end)

    async def _watch(self) -> None:
        backoff = Backoff(FIRST_PAUSE, MOST_PAUSE)
        while True:
            log.error("part_ended", part=self._name, exit_status=await self._ended())
            await asyncio.sleep(backoff.pause())
            while not await self._started_again():  # noqa: ASYNC110 - nobody tells when it would start
                await asyncio.sleep(backoff.pause(ran=False))
            backoff.begin()

    async def _ended(self) -> int | None:
        try:
            return await self._wait()
        except Exception:
            # Nobody can say how it ended; a new start clears that up too.
            log.exception("part_not_watched", part=self._name)
            return None

    async def _started_again(self) -> bool:
        self.restarts += 1
        try:
            await self._start()
        except Exception:
            log.exception("part_not_started", part=self._name)
            return False
        return True
