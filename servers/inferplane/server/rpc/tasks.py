"""Work that goes on beside the calls."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

__all__ = ["Tasks"]

log = structlog.get_logger()

RESTART_DELAY = 1.0


@dataclass(slots=True)
class Tasks:
    """Background tasks of a service. One that fails is logged and started again; they end with the service."""

    _running: set["asyncio.Task[None]"] = field(default_factory=set)

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` for the service's life."""
        task = asyncio.create_task(self._supervise(name, work), name=name)
        self._running.add(task)

    def every(self, seconds: float, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` again and again, first after `seconds`."""

        async def repeat() -> None:
            while True:
                await asyncio.sleep(seconds)
                await work()

        self.start(name, repeat)

    async def stop(self) -> None:
        """Cancel all and wait for their ends."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _supervise(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
                return
            except Exception:
                log.exception("background_task_failed", task=name)
                await asyncio.sleep(RESTART_DELAY)
