"""Request streams that stall, and answer streams whose reader leaves."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from inferplane.common.v1.access_pb2 import AccessRule
from inferplane.server.errors import InferplaneError
from inferplane.server.rpc.errors import reason_name
from inferplane.server.rpc.interceptors import deadlines
from inferplane.server.rpc.interceptors.deadlines import DeadlinePolicy
from inferplane.server.rpc.methods import Method

IDLE = 0.05


class FakeCall:
    """As much of a call as pacing looks at."""

    def __init__(self, path: str) -> None:
        self.method = Method(path, "s", "m", AccessRule(public=True), streams=True)
        self.ended: list[str] = []

    def end(self, error: InferplaneError) -> None:
        """Note why the call is to be ended from outside."""
        self.ended.append(reason_name(error.reason))


async def paced(messages: AsyncIterator[bytes], path: str = "/s/m", rate: float = 0) -> list[bytes]:
    call: Any = FakeCall(path)
    return [message async for message in DeadlinePolicy(1, IDLE, rate).pace(call, messages)]


async def drip(pause: float, size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(pause)
        yield bytes(size)


async def test_a_steady_stream_passes() -> None:
    assert len(await paced(drip(0, 10, 20))) == 20


@pytest.mark.parametrize("turns", range(6))
async def test_an_end_that_comes_with_a_message_is_not_lost(turns: int) -> None:
    arrived = asyncio.get_running_loop().create_future()

    async def messages() -> AsyncIterator[bytes]:
        yield await arrived
        await asyncio.Event().wait()

    call: Any = FakeCall("/s/m")

    async def read() -> None:
        async for _ in DeadlinePolicy(1, 10, 0).pace(call, messages()):
            pass

    reading = asyncio.create_task(read())
    for _ in range(5):
        await asyncio.sleep(0)
    arrived.set_result(b"message")
    for _ in range(turns):
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(2):
            await reading
    assert reading.cancelled()


async def test_a_silent_stream_is_ended() -> None:
    with pytest.raises(InferplaneError) as ended:
        await paced(drip(10 * IDLE, 1, 1))
    assert reason_name(ended.value.reason) == "STREAM_STALLED"


async def test_an_upload_that_only_drips_is_ended() -> None:
    (path,) = deadlines.RATED
    with pytest.raises(InferplaneError) as ended:
        await paced(drip(IDLE / 2, 1, 20), path, rate=1000)
    assert reason_name(ended.value.reason) == "STREAM_STALLED"


async def test_time_that_the_server_takes_is_not_held_against_the_client() -> None:
    (path,) = deadlines.RATED
    call: Any = FakeCall(path)
    async for _ in DeadlinePolicy(1, IDLE, 1000).pace(call, drip(0, 10, 5)):
        await asyncio.sleep(2 * IDLE)


async def taken(call: Any, pause: float, rate: float, count: int = 20) -> int:
    """How many answers a client takes, each after `pause` seconds."""
    number = 0
    async for _ in DeadlinePolicy(1, IDLE, rate).pace_answers(call, drip(0, 10, count), len):
        number += 1
        await asyncio.sleep(pause)
    return number


async def test_answers_that_are_taken_pass() -> None:
    assert await taken(FakeCall("/s/m"), 0, 0) == 20


async def test_a_call_whose_client_takes_nothing_is_ended() -> None:
    call = FakeCall("/s/m")
    await taken(call, 3 * IDLE, 0, count=1)
    assert call.ended == ["STREAM_STALLED"]


async def test_a_client_that_takes_too_little_is_ended() -> None:
    with pytest.raises(InferplaneError) as ended:
        await taken(FakeCall("/s/m"), IDLE / 2, 1000)
    assert reason_name(ended.value.reason) == "STREAM_STALLED"


async def test_time_in_which_the_server_makes_an_answer_is_not_held_against_its_reader() -> None:
    call: Any = FakeCall("/s/m")
    answers = DeadlinePolicy(1, IDLE, 1000).pace_answers(call, drip(2 * IDLE, 10, 5), len)
    assert len([answer async for answer in answers]) == 5


def test_the_metrics_registry_is_not_global() -> None:
    """Two servers in one process must not share their counters."""
    from inferplane.server.rpc.interceptors.observation import Observation

    Observation(CollectorRegistry())
    Observation(CollectorRegistry())
