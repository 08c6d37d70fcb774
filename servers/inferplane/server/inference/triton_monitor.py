"""Whether Triton is there, with the models that it must serve."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import structlog

from inferplane.server.inference.triton_link import TritonLink

__all__ = ["TritonMonitor"]

log = structlog.get_logger()

CHECK_INTERVAL = 0.5
RELOAD_GRACE = 10.0


class TritonMonitor:
    """Watches Triton. `report(up)` is called when it goes away or is back with its models.

    `models` names what must be served for it to count as back, since a Triton that has just started serves nothing.
    """

    def __init__(
        self, link: TritonLink, models: Callable[[], list[tuple[str, int]]], report: Callable[[bool], None]
    ) -> None:
        self._link = link
        self._models = models
        self._report = report
        self._up = False

    async def run(self) -> None:
        """Ask Triton at intervals, until cancelled."""
        live_since: float | None = None
        clock = asyncio.get_running_loop().time
        while True:
            if not await self._link.live():
                live_since = None
                self._set(False)
            elif not self._up:
                live_since = live_since or clock()
                self._set(await self._all_loaded() or clock() - live_since > RELOAD_GRACE)
            await asyncio.sleep(CHECK_INTERVAL)

    async def watch_connection(self) -> None:
        """Note a lost connection at once, until cancelled: Triton may be back, and empty, before it is asked again."""
        channel = self._link.channel
        while True:
            state = channel.get_state(try_to_connect=True)
            await channel.wait_for_state_change(state)
            if state is grpc.ChannelConnectivity.READY:
                self._set(False)

    async def _all_loaded(self) -> bool:
        checks: list[Awaitable[bool]] = [self._link.model_ready(name, version) for name, version in self._models()]
        return all(await asyncio.gather(*checks))

    def _set(self, up: bool) -> None:
        if up != self._up:
            log.warning("triton_up" if up else "triton_down")
            self._up = up
            self._report(up)
