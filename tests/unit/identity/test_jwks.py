"""How often Auth's keys are fetched, and what callers get meanwhile."""

import asyncio
import json
from typing import Any

import pytest
from joserfc.jwk import ECKey, KeySet

from inferplane.server.errors import InferplaneError
from inferplane.server.identity import verification
from inferplane.server.identity.verification import JwksCache
from inferplane.server.rpc.errors import reason_name
from inferplane.server.tasks import ContainedError


class Auth:
    """Publishes keys, or is down."""

    def __init__(self, *kids: str) -> None:
        self.keys = [ECKey.generate_key("P-256", {"kid": kid}) for kid in kids]
        self.down = False
        self.fetches = 0

    async def fetch(self) -> str:
        self.fetches += 1
        await asyncio.sleep(0)
        if self.down:
            raise ConnectionError
        return json.dumps(KeySet([*self.keys]).as_dict(private=False))


class Clock:
    """Stands in for the monotonic clock."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(verification, "time", clock)
    return clock


async def outcome(cache: JwksCache, kid: str) -> Any:
    try:
        return await cache.key(kid)
    except InferplaneError as error:
        return reason_name(error.reason)


async def test_a_failed_fetch_is_tried_again_at_most_every_two_seconds(clock: Clock) -> None:
    auth = Auth("a")
    auth.down = True
    cache = JwksCache(auth.fetch)
    outcomes = await asyncio.gather(*(outcome(cache, "a") for _ in range(100)))
    assert (set(outcomes), auth.fetches) == ({"DEPENDENCY_UNAVAILABLE"}, 1)
    clock.now += 1.9
    assert (await outcome(cache, "a"), auth.fetches) == ("DEPENDENCY_UNAVAILABLE", 1)
    clock.now += 0.2
    auth.down = False
    assert (await outcome(cache, "a")).kid == "a"
    assert auth.fetches == 2


async def test_keys_that_are_known_serve_while_auth_is_down(clock: Clock) -> None:
    auth = Auth("a")
    cache = JwksCache(auth.fetch)
    await cache.key("a")
    auth.down = True
    clock.now += 3
    assert await outcome(cache, "rotated") == "DEPENDENCY_UNAVAILABLE"
    assert (await outcome(cache, "a")).kid == "a"


async def test_unknown_key_ids_do_not_make_a_flood_of_fetches(clock: Clock) -> None:
    auth = Auth("a")
    cache = JwksCache(auth.fetch)
    assert [await outcome(cache, f"k{number}") for number in range(50)] == [None] * 50
    assert auth.fetches == 1


class SlowAuth(Auth):
    """Answers when it is let."""

    def __init__(self, *kids: str) -> None:
        super().__init__(*kids)
        self.asked, self.let = asyncio.Event(), asyncio.Event()

    async def fetch(self) -> str:
        self.asked.set()
        await self.let.wait()
        return await super().fetch()


async def test_a_caller_who_leaves_does_not_end_the_fetch_that_others_wait_for(clock: Clock) -> None:
    auth = SlowAuth("a")
    cache = JwksCache(auth.fetch)
    first = asyncio.create_task(outcome(cache, "a"))
    second = asyncio.create_task(outcome(cache, "a"))
    await auth.asked.wait()
    first.cancel()
    await asyncio.wait([first])
    auth.let.set()
    assert (await second).kid == "a"
    assert auth.fetches == 1


async def test_callers_who_leave_at_once_do_not_starve_those_who_come_after(clock: Clock) -> None:
    auth = SlowAuth("a")
    cache = JwksCache(auth.fetch)
    hasty = [asyncio.create_task(outcome(cache, f"k{number}")) for number in range(10)]
    await auth.asked.wait()
    for caller in hasty:
        caller.cancel()
    await asyncio.wait(hasty)
    auth.let.set()
    assert (await outcome(cache, "a")).kid == "a"
    assert auth.fetches == 1


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_a_fetch_that_would_end_the_process_fails_those_who_wait_and_is_tried_again(
    clock: Clock, end: BaseException
) -> None:
    async def fails() -> str:
        raise end

    cache = JwksCache(fails)
    with pytest.raises(ContainedError):
        await cache.key("a")
    clock.now += 3
    cache.fetch_from(Auth("a").fetch)
    assert (await outcome(cache, "a")).kid == "a"
