"""Calls of somebody without a token that are nothing but headers: whoever makes them stops nobody else."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from tests.support.bystander import bystand, p99, publish
from tests.support.processes import computes
from tests.support.up import Up, running_up

P99 = 0.25
"""Seconds."""
TRIES = 3
"""Other tests share this machine: one of so many tries must have been left in peace."""
SECONDS = 6.0
CONNECTIONS = 6
FLOODS = {
    "calls that are given up at once": ("1000", "0", "--reset"),
    "calls with as many headers as are allowed": ("800", "440"),
}


@pytest.fixture(scope="module")
def flooded() -> Iterator[tuple[Up, str]]:
    """A mesh that nothing else is measured on, and the token of who may call its model."""
    with TemporaryDirectory(prefix="inferplane-") as directory, running_up(Path(directory)) as up:
        token, _ = asyncio.run(publish(up, Path(directory)))
        yield up, token


async def flood(address: str, rate: str, entries: str, *options: str) -> int:
    """How many calls were made."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.headers", address, rate, entries, str(SECONDS), *options),
        stdout=asyncio.subprocess.PIPE,
    )
    made, _ = await process.communicate()
    return int(made)


async def test_calls_as_fast_as_they_can_be_made_end_no_worker(flooded: tuple[Up, str]) -> None:
    """They are looked at while gRPC lets them go, one after the other."""
    up, _ = flooded
    address, pid = up.endpoints["reporting"], up.pids["reporting"]
    made = await asyncio.gather(*(flood(address, "1e9", "0", "--reset") for _ in range(CONNECTIONS)))
    print(f"{sum(made)} calls")
    assert min(made) >= 500
    # What has come is worked off, and nobody measures beside it.
    async with asyncio.timeout(60):
        while await asyncio.to_thread(computes, psutil.Process(pid)):
            pass
    up.refresh()
    assert up.pids["reporting"] == pid


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_headers_does_not_hold_up_the_calls_of_others(flooded: tuple[Up, str], kind: str) -> None:
    up, token = flooded
    address, pid = up.endpoints["inference"], up.pids["inference"]
    rate, entries, *options = FLOODS[kind]
    seen: list[float] = []
    while len(seen) < TRIES and min(seen, default=P99) >= P99:
        making = asyncio.create_task(flood(address, rate, entries, *options))
        seen.append(p99(await bystand(address, token, SECONDS)))
        assert await making >= 500
    print(f"p99 of others beside {kind}: {[round(taken * 1000) for taken in seen]} ms")
    assert min(seen) < P99, seen
    up.refresh()
    assert up.pids["inference"] == pid
