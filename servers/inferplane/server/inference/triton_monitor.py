"""Whether Triton is there, with the models that it must serve."""

import asyncio
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import grpc
import structlog

from inferplane.server.inference.triton_link import TritonLink
from inferplane.server.tasks import start_task

__all__ = ["TritonMonitor", "Wanted"]

log = structlog.get_logger()

CHECK_INTERVAL = 0.5
RELOAD_GRACE = 10.0


class Wanted(NamedTuple):
    """A version that a deployment shall serve, and whether it does, as far as the tables know."""

    name: str
    version: int
    ready: bool


class TritonMonitor:
    """Watches Triton. `report(up)` is called when it goes away or is back with its models.

    `wanted` are all deployments, None before they are known. Those that were ready must be served for Triton to count
    as back: one that has just started serves nothing, and when that is noted they are ready no more. It counts as back
    without them RELOAD_GRACE seconds after it came: one that cannot be loaded is not the others' end.
    """

    def __init__(
        self,
        link: TritonLink,
        wanted: Callable[[], Collection[Wanted] | None],
        report: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._wanted = wanted
        self._awaited: set[tuple[str, int]] = set()
        self._report = report
        self._clock = clock
        self._up = False
        self._came_at: float | None = None

    async def run(self) -> None:
        """Ask Triton at intervals, until cancelled."""
        while True:
            if not await self._link.live():
                self._went()
            elif not self._up:
                await self._see_whether_it_is_back()
            await asyncio.sleep(CHECK_INTERVAL)

    async def watch_connection(self) -> None:
        """Note a lost connection at once, until cancelled: Triton may be back, and empty, before it is asked again."""
        channel = self._link.channel
        while True:
            state = channel.get_state(try_to_connect=True)
            await channel.wait_for_state_change(state)
            if state is grpc.ChannelConnectivity.READY:
                self._went()

    async def _see_whether_it_is_back(self) -> None:
        came_at = self._came_at = self._clock() if self._came_at is None else self._came_at
        loaded = await self._all_loaded()
        # It may have gone, and another come, while it was asked.
        if self._came_at == came_at and (loaded or self._clock() - came_at > RELOAD_GRACE):
            self._set(True)

    def _went(self) -> None:
        # The grace of the one that comes is its own: the last one's was over long ago.
        self._came_at = None
        if self._up:
            self._awaited = set()
            self._await(self._wanted() or ())
        self._set(False)

    async def _all_loaded(self) -> bool:
        if (wanted := self._wanted()) is None:
            return False
        self._await(wanted)
        checks = [start_task(self._link.model_ready(name, version)) for name, version in self._awaited]
        return all(await asyncio.gather(*checks))

    def _await(self, wanted: Collection[Wanted]) -> None:
        """Those that are ready, and of those that were the ones that still shall be."""
        self._awaited = {
            (name, version) for name, version, ready in wanted if ready or (name, version) in self._awaited
        }

    def _set(self, up: bool) -> None:
        if up != self._up:
            log.warning("triton_up" if up else "triton_down")
            self._up = up
            self._report(up)
