"""Parts of an installation that do not start again."""

import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest

from inferplane.server import backoff
from inferplane.server.processes import parts
from inferplane.server.processes.parts import MOST_PAUSE, KeptPart


@pytest.mark.parametrize("seconds", [1.0, 60.0], ids=["at once", "after a minute"])
async def test_a_part_that_ran_long_and_does_not_start_again_is_tried_ever_more_slowly(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    clock = 0.0
    pauses: list[float] = []
    enough = asyncio.Event()

    class Recorded(backoff.Backoff):
        def pause(self, *, ran: bool = True) -> float:
            pauses.append(super().pause(ran=ran))
            if len(pauses) == 10:
                enough.set()
            return 0.0

    async def run_for_an_hour() -> int:
        nonlocal clock
        clock += 3600.0
        return 1

    async def fail() -> None:
        nonlocal clock
        clock += seconds
        raise OSError("No space left on device")

    monkeypatch.setattr(backoff, "time", SimpleNamespace(monotonic=lambda: clock))
    monkeypatch.setattr(parts, "Backoff", Recorded)
    async with AsyncExitStack() as stack, asyncio.timeout(10):
        KeptPart("database", run_for_an_hour, fail).keep(stack)
        await enough.wait()
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[MOST_PAUSE] * 4]
