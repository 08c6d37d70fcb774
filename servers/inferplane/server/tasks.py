"""Work that goes on beside the calls."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from inferplane.server.backoff import Backoff

__all__ = ["ContainedError", "Tasks", "start_task"]

log = structlog.get_logger()

FIRST_PAUSE = 1.0
MOST_PAUSE = 10.0
FIRST_ROUND = 60.0
"""Seconds after the start at which seldom work is done at the latest, for processes that never run for long."""

Work = Callable[[], Coroutine[Any, Any, None]]
T = TypeVar("T")


class ContainedError(Exception):
    """SystemExit or KeyboardInterrupt was raised in a task; from a task of asyncio's they end the whole process."""


def start_task(work: Coroutine[Any, Any, T], *, name: str | None = None) -> "asyncio.Task[T]":
    """A task of its own for `work`; what would end the process fails the task alone, as ContainedError."""
    task = asyncio.create_task(_contained(work), name=name)
    # Cancelled before its first step, it leaves work that was never begun.
    task.add_done_callback(lambda _: work.close())
    return task


async def _contained(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise ContainedError(repr(error)) from error


class Tasks:
    """Background tasks of a service, which end with it and not before.

    One that ends otherwise, in whatever way, is logged, counted in `inferplane_background_task_restarts_total` and
    started again after a pause of 1 to 10 seconds. `inferplane_background_task_running` is 1 while one runs.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._restarts = Counter(
            "inferplane_background_task_restarts", "Background tasks that ended.", ["task"], registry=registry
        )
        self._running = Gauge(
            "inferplane_background_task_running",
            "1 while the task runs, 0 while it waits.",
            ["task"],
            registry=registry,
        )

    def start(self, name: str, work: Work) -> None:
        """Run `work`, which should never return, for the service's life."""
        self._restarts.labels(name)
        self._tasks.add(asyncio.create_task(self._supervise(name, work), name=name))

    def every(self, seconds: float, name: str, work: Work) -> None:
        """Run `work` again and again with `seconds` between, first after as long or FIRST_ROUND."""

        async def repeat() -> None:
            await asyncio.sleep(min(seconds, FIRST_ROUND))
            while True:
                await work()
                await asyncio.sleep(seconds)

        self.start(name, repeat)

    async def stop(self) -> None:
        """Cancel all and wait for their ends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _supervise(self, name: str, work: Work) -> None:
        backoff = Backoff(FIRST_PAUSE, MOST_PAUSE)
        while True:
            backoff.begin()
            with self._running.labels(name).track_inprogress():
                await self._run(name, work)
            self._restarts.labels(name).inc()
            await asyncio.sleep(backoff.pause())

    async def _run(self, name: str, work: Work) -> None:
        """Run `work` once. Raises only what ends the task itself: its cancellation, and the closing of the loop."""
        try:
            await work()
        except GeneratorExit:
            raise
        except BaseException as error:
            # A library's own CancelledError comes without anybody having asked this task to end.
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            log.exception("background_task_failed", task=name)
        else:
            log.error("background_task_returned", task=name)
