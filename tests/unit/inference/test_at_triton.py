"""What becomes of calls that nobody waits for, and which of the next are sent to Triton."""

import asyncio
import gc
import time

import pytest

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import Presence
from inferplane.server.inference.dataplane import at_triton
from inferplane.server.inference.dataplane.at_triton import AT_ONCE, CallsAtTriton
from inferplane.server.inference.dataplane.known_answers import UNKNOWN, KnownAnswers
from inferplane.server.inference.dataplane.under_way import UnderWay, Window
from tests.support.mesh import until
from tests.support.reading import settled

ALICE, BOB = "alice", "bob"


class Triton:
    """Calls that end when they are told to, or after so many seconds."""

    def __init__(self) -> None:
        self.at_triton = CallsAtTriton()
        self.known = KnownAnswers("digest")
        self.under_way = UnderWay(Window(answers=1 << 40, answers_each=1 << 40), Presence())
        self.go = asyncio.Event()
        self.open = self.most = self.over = 0

    async def infer(self, seconds: float | None) -> bytes:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await (self.go.wait() if seconds is None else asyncio.sleep(seconds))
        finally:
            self.open -= 1
        self.over += 1
        return b"answer"

    async def call(self, takes: float | None = None, seconds: float = 60, caller: str = ALICE) -> bytes:
        place = self.under_way.try_enter(caller, 0, self.known.may_be(caller))
        assert place is not None

        async def ask(_timeout: float) -> bytes:
            try:
                return await self.infer(takes)
            finally:
                place.leave()

        return await self.at_triton.run(ask, self.known, place, time.monotonic() + seconds)

    async def too_late(self, takes: float | None = None, seconds: float = 0.01, caller: str = ALICE) -> None:
        with pytest.raises(InferplaneError) as error:
            await self.call(takes, seconds, caller)
        assert error.value.reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED

    def begin(self, takes: float | None = None, seconds: float = 60, caller: str = ALICE) -> "asyncio.Task[bytes]":
        return asyncio.create_task(self.call(takes, seconds, caller))


@pytest.fixture
def triton() -> Triton:
    return Triton()


async def test_a_call_goes_on_and_counts_until_it_is_over(triton: Triton) -> None:
    await triton.too_late()
    left = triton.begin()
    await until(lambda: triton.open == 2)
    left.cancel()
    await asyncio.wait([left])
    assert left.cancelled()
    assert (triton.open, triton.under_way._answers.inside) == (2, 2 * UNKNOWN)
    triton.go.set()
    await until(lambda: triton.under_way._answers.inside == 0)
    assert triton.over == 2


async def test_who_ends_waits_for_those_that_go_on(triton: Triton) -> None:
    await triton.at_triton.finish(5)
    await triton.too_late(takes=0.1)
    await triton.at_triton.finish(5)
    assert (triton.over, triton.open) == (1, 0)
    await triton.too_late(caller=BOB)
    await triton.at_triton.finish(0.05)
    assert triton.open == 1
    triton.go.set()


async def test_its_room_for_a_request_is_others_at_once(triton: Triton) -> None:
    await triton.too_late()
    assert triton.under_way._requests.inside == 0
    triton.go.set()


async def test_of_what_fails_when_nobody_waits_nobody_is_told(
    triton: Triton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(seconds: float | None) -> bytes:
        await triton.go.wait()
        raise ValueError(seconds)

    monkeypatch.setattr(triton, "infer", fail)
    await triton.too_late()
    triton.go.set()
    await until(lambda: triton.under_way._answers.inside == 0)
    await settled()
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_what_comes_too_late_is_not_sent_and_leaves_its_place(triton: Triton) -> None:
    await triton.too_late(seconds=-0.01)
    assert (triton.most, triton.under_way.size, triton.under_way._answers.inside) == (0, 0, 0)


async def test_until_one_is_over_so_many_are_sent(triton: Triton) -> None:
    calls = [triton.begin() for _ in range(3 * AT_ONCE)]
    bobs = triton.begin(takes=0, caller=BOB)
    await bobs
    await settled()
    assert triton.open == AT_ONCE
    triton.go.set()
    await asyncio.gather(*calls)


async def test_while_none_came_too_late_many_are_sent_at_once(triton: Triton) -> None:
    await triton.call(takes=0.1)
    calls = [triton.begin(seconds=30) for _ in range(100)]
    await until(lambda: triton.open == 100)
    triton.go.set()
    await asyncio.gather(*calls)


async def test_but_none_that_could_be_answered_beside_so_many_others_only(triton: Triton) -> None:
    """100 calls of half a second do not fit into one."""
    await triton.call(takes=0.5)
    calls = [triton.begin(seconds=1) for _ in range(100)]
    await until(lambda: triton.open > AT_ONCE)
    await settled()
    assert AT_ONCE < triton.open <= 2 * AT_ONCE
    triton.go.set()
    await asyncio.gather(*calls)


async def test_whose_last_came_too_late_has_no_other_sent_that_would_too(triton: Triton) -> None:
    await triton.call(takes=0.1)
    await triton.too_late(seconds=0.02)
    began = time.monotonic()
    await triton.too_late(seconds=0.15)
    assert time.monotonic() - began >= 0.15
    assert triton.most == 1
    triton.go.set()
    await triton.call(seconds=1)


async def test_it_is_sent_when_the_one_before_it_is_over(triton: Triton) -> None:
    await triton.call(takes=0.1)
    await triton.too_late()
    waiting = triton.begin(takes=0, seconds=0.19)
    await settled()
    assert triton.open == 1
    triton.go.set()
    await waiting
    assert triton.most == 1


async def test_another_caller_has_his_own_sent(triton: Triton) -> None:
    await triton.call(takes=0.1)
    await triton.too_late()
    await triton.call(takes=0, seconds=0.05, caller=BOB)
    triton.go.set()


async def test_who_leaves_while_waiting_leaves_his_place(triton: Triton) -> None:
    await triton.call(takes=0.1)
    await triton.too_late()
    waiting = triton.begin(seconds=0.15)
    await settled()
    waiting.cancel()
    await asyncio.wait([waiting])
    triton.go.set()
    await until(lambda: triton.under_way._answers.inside == 0)
    assert triton.over == 2


async def test_calls_beside_one_another_are_taken_to_share_their_time(triton: Triton) -> None:
    await asyncio.gather(*(triton.call(takes=0.4) for _ in range(4)))
    assert 0.1 <= triton.at_triton._calls[triton.known, ALICE].each < 0.2


async def test_whose_calls_took_long_has_one_tried_when_none_is_there(triton: Triton) -> None:
    """Cheap ones after a dear one are not kept back by what that took."""
    await triton.call(takes=0.2)
    triton.at_triton._calls[triton.known, ALICE].came_too_late()
    await asyncio.gather(*(triton.call(takes=0.001, seconds=0.1) for _ in range(3)))


async def test_of_all_callers_one_is_tried_at_a_time(triton: Triton) -> None:
    for caller in (ALICE, BOB):
        await triton.call(takes=0.2, caller=caller)
        triton.at_triton._calls[triton.known, caller].came_too_late()
    tried = triton.begin(seconds=0.1)
    await until(lambda: triton.open == 1)
    await triton.too_late(seconds=0.05, caller=BOB)
    assert triton.open == 1
    triton.go.set()
    await tried
    await triton.call(seconds=0.1, caller=BOB)


async def test_what_took_long_is_tried_again_ever_less_often(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_triton, "HALF", 0.1)
    monkeypatch.setattr(at_triton, "LOOK_AGAIN", 0.01)
    await triton.call(takes=0.5)
    triton.at_triton._calls[triton.known, ALICE].came_too_late()
    triton.at_triton._trying.add(triton.known)
    began = time.monotonic()
    await triton.call(takes=0, seconds=0.4)
    assert time.monotonic() - began >= 0.05


async def test_nothing_is_kept_of_who_is_not_here(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_triton, "REMEMBERED", 0.02)
    await triton.too_late(seconds=0.1)
    assert triton.at_triton._calls
    triton.go.set()
    await until(lambda: not triton.at_triton._calls)
