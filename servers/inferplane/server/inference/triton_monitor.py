"""Whether Triton is there, with the models that it must serve."""

import asyncio
import time
from collections.abc import Callable

import grpc
import structlog

from inferplane.server.inference.triton_link import TritonLink
from inferplane.server.tasks import start_task

__all__ = ["TritonMonitor"]

log = structlog.get_logger()

CHECK_INTERVAL = 0.5
RELOAD_GRACE = 10.0


class TritonMonitor:
    """Watches Triton. `report(up)` is called when it goes away or is back with its models.

    `models` names what must be served for it to count as back, since a Triton that has just started serves nothing.
    It counts as back without them RELOAD_GRACE seconds after it came: one that cannot be loaded is not the others' end.
    """

    def __init__(
        self,
        link: TritonLink,
        models: Callable[[], list[tuple[str, int]]],
        report: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._models = models
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
        self._set(False)

    async def _all_loaded(self) -> bool:
        checks = [start_task(self._link.model_ready(name, version)) for name, version in self._models()]
        return all(await asyncio.gather(*checks))

    def _set(self, up: bool) -> None:
        if up != self._up:
            log.warning("triton_up" if up else "triton_down")
            self._up = up
            self._report(up)
