"""What becomes of calls that nobody waits for, and which of the next are sent to Triton."""

import asyncio
import contextlib
import gc
import time

import pytest

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import Presence
from inferplane.server.inference.dataplane import at_triton
from inferplane.server.inference.dataplane.at_triton import MORE, SIDE_BY_SIDE, UNTRIED, Calls, CallsAtTriton
from inferplane.server.inference.dataplane.known_answers import UNKNOWN, KnownAnswers
from inferplane.server.inference.dataplane.under_way import Place, UnderWay, Window
from tests.support.mesh import until
from tests.support.reading import FailedError, settled

ALICE, BOB = "alice", "bob"


class Triton:
    """Calls that end when they are told to, or after so many seconds."""

    def __init__(self) -> None:
        self.at_triton = CallsAtTriton()
        self.known = KnownAnswers("digest")
        self.known.came(ALICE, UNKNOWN)
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

    def calls(self, caller: str = ALICE) -> Calls:
        return self.at_triton._calls[self.known, caller]

    def place(self, caller: str = ALICE) -> Place:
        place = self.under_way.try_enter(caller, 0, self.known.may_be(caller))
        assert place is not None
        return place

    async def call(self, takes: float | None = None, seconds: float = 60, caller: str = ALICE) -> bytes:
        place = self.place(caller)

        async def ask(_timeout: float) -> bytes:
            return await self.infer(takes)

        deadline = time.monotonic() + seconds
        try:
            await self.at_triton.until_may_send(self.known, caller, deadline)
        except BaseException:
            place.leave()
            raise
        return await self.at_triton.run(ask, self.known, place, deadline)

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
    assert (triton.open, triton.under_way.answers.inside) == (2, 2 * UNKNOWN)
    triton.go.set()
    await until(lambda: triton.under_way.answers.inside == 0)
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


async def test_of_whom_nothing_is_known_it_has_no_room_for_an_answer(triton: Triton) -> None:
    await triton.too_late(caller=BOB)
    assert (triton.open, triton.under_way.answers.inside) == (1, 0)
    triton.go.set()


async def test_its_room_for_a_request_is_others_at_once(triton: Triton) -> None:
    await triton.too_late()
    assert (triton.under_way.requests.inside, triton.under_way.size > 0) == (0, True)
    triton.go.set()
    await until(lambda: triton.under_way.size == 0)


async def test_of_what_fails_when_nobody_waits_nobody_is_told(
    triton: Triton, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(seconds: float | None) -> bytes:
        await triton.go.wait()
        raise ValueError(seconds)

    monkeypatch.setattr(triton, "infer", fail)
    await triton.too_late()
    triton.go.set()
    await until(lambda: triton.under_way.answers.inside == 0)
    await settled()
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_what_comes_too_late_is_not_sent_and_leaves_its_place(triton: Triton) -> None:
    await triton.too_late(seconds=-0.01)
    assert (triton.most, triton.under_way.size, triton.under_way.answers.inside) == (0, 0, 0)


async def test_until_one_is_over_so_many_are_sent(triton: Triton) -> None:
    calls = [triton.begin() for _ in range(3 * UNTRIED)]
    bobs = triton.begin(takes=0, caller=BOB)
    await bobs
    await settled()
    assert triton.open == UNTRIED
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
    await until(lambda: triton.open > SIDE_BY_SIDE)
    await settled()
    assert SIDE_BY_SIDE < triton.open <= 2 * SIDE_BY_SIDE
    triton.go.set()
    await asyncio.gather(*calls)


async def test_whose_last_came_too_late_has_no_other_sent_that_would_too(triton: Triton) -> None:
    await triton.call(takes=0.1)
    triton.calls().side_by_side = 1
    await triton.too_late(seconds=0.02)
    began = time.monotonic()
    await triton.too_late(seconds=0.15)
    assert time.monotonic() - began >= 0.15
    assert triton.most == 1
    triton.go.set()
    await triton.call(seconds=1)


async def test_it_is_sent_when_the_one_before_it_is_over(triton: Triton) -> None:
    await triton.call(takes=0.1)
    triton.calls().side_by_side = 1
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
    triton.calls().side_by_side = 1
    await triton.too_late()
    waiting = triton.begin(seconds=0.15)
    await settled()
    waiting.cancel()
    await asyncio.wait([waiting])
    triton.go.set()
    await until(lambda: triton.under_way.answers.inside == 0)
    assert triton.over == 2


async def test_whose_calls_took_long_has_one_tried_when_none_is_there(triton: Triton) -> None:
    """Cheap ones after a dear one are not kept back by what that took."""
    await triton.call(takes=0.2)
    triton.calls().side_by_side = 1
    await asyncio.gather(*(triton.call(takes=0.001, seconds=0.1) for _ in range(3)))


async def test_of_all_callers_one_is_tried_at_a_time(triton: Triton) -> None:
    for caller in (ALICE, BOB):
        await triton.call(takes=0.2, caller=caller)
        triton.calls(caller).side_by_side = 1
    tried = triton.begin(seconds=0.1)
    await until(lambda: triton.open == 1)
    await triton.too_late(seconds=0.05, caller=BOB)
    assert triton.open == 1
    triton.go.set()
    await tried
    await triton.call(seconds=0.1, caller=BOB)


def test_before_the_first_is_over_so_many_have_time_however_little_it_is() -> None:
    assert Calls(open=UNTRIED - 1).has_time(now=0, deadline=0.001)
    assert not Calls(open=UNTRIED).has_time(now=0, deadline=1000)


def test_calls_that_are_there_together_share_what_they_take() -> None:
    calls = Calls()
    calls.took(now=1, seconds=8, beside=4)
    assert calls.takes == 2


def test_what_is_shorter_is_believed_at_once_and_what_is_longer_by_a_quarter() -> None:
    calls = Calls()
    for seconds, takes in ((4, 4), (1, 1), (5, 2)):
        calls.took(now=1, seconds=seconds, beside=1)
        assert calls.takes == takes


@pytest.mark.parametrize(("side_by_side", "most"), [(SIDE_BY_SIDE, 16), (4, 8), (1, 2)])
def test_of_calls_that_take_a_second_as_many_fit_into_two_as_go_on_side_by_side(side_by_side: float, most: int) -> None:
    calls = Calls(open=most - 1, takes=1, side_by_side=side_by_side)
    assert calls.has_time(now=0, deadline=2)
    calls.open += 1
    assert not calls.has_time(now=0, deadline=2)


def test_while_many_go_on_side_by_side_some_have_time_whatever_one_takes() -> None:
    assert Calls(open=6, takes=1000).has_time(now=0, deadline=1)
    assert not Calls(open=0, takes=1000, side_by_side=1).has_time(now=0, deadline=1)


def test_each_that_is_given_up_halves_how_many_go_on_side_by_side_and_each_in_time_makes_them_more() -> None:
    calls = Calls()
    for side_by_side in (4, 2, 1, 1):
        calls.give_up()
        assert calls.side_by_side == side_by_side
    calls.in_time()
    assert calls.side_by_side == 1 + MORE
    for _ in range(1000):
        calls.in_time()
    assert calls.side_by_side == SIDE_BY_SIDE


def test_while_so_many_that_were_given_up_are_there_no_other_is_sent() -> None:
    calls = Calls(open=UNTRIED, takes=0.001, given_up=UNTRIED - 1)
    assert calls.has_time(now=0, deadline=10)
    calls.given_up += 1
    assert not calls.has_time(now=0, deadline=10)


def test_what_is_expected_halves_while_no_answer_comes() -> None:
    calls = Calls(takes=1, answered_at=100, side_by_side=1)
    assert not calls.has_time(now=109, deadline=109.5)
    assert calls.has_time(now=110, deadline=110.5)
    assert not calls.has_time(now=119, deadline=119.25)
    assert calls.has_time(now=120, deadline=120.25)


async def test_calls_that_go_on_side_by_side_are_found_to_though_they_were_sent_one_by_one(triton: Triton) -> None:
    """Each takes more than half of the time that it has."""
    await triton.call(takes=0.03)
    triton.calls().side_by_side = 1
    end = time.monotonic() + 2

    async def lane() -> None:
        while time.monotonic() < end:
            with contextlib.suppress(InferplaneError):
                await triton.call(takes=0.03, seconds=0.05)

    await asyncio.gather(*(lane() for _ in range(8)))
    assert triton.most == 8


async def test_who_failed_gave_nothing_up(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_seconds: float | None) -> bytes:
        raise FailedError

    monkeypatch.setattr(triton, "infer", fail)
    with pytest.raises(FailedError):
        await triton.call()
    calls = triton.calls()
    assert (calls.open, calls.given_up, calls.side_by_side, triton.under_way.size) == (0, 0, SIDE_BY_SIDE, 0)


@pytest.mark.parametrize("is_answered", [False, True])
async def test_one_that_goes_on_for_too_long_is_ended_unless_its_answer_has_begun_to_come(
    triton: Triton, monkeypatch: pytest.MonkeyPatch, is_answered: bool
) -> None:
    monkeypatch.setattr(at_triton, "GOES_ON", 0.05)
    place = triton.place()
    place.is_answered = is_answered
    with pytest.raises(InferplaneError):
        await triton.at_triton.run(lambda _: triton.infer(0.15), triton.known, place, time.monotonic() + 0.01)
    await until(lambda: triton.open == 0)
    assert triton.over == is_answered
    await until(lambda: triton.calls().given_up == 0)


async def test_nothing_is_kept_of_who_is_not_here(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_triton, "REMEMBERED", 0.05)
    await triton.too_late(seconds=0.15)
    assert triton.at_triton._calls
    triton.go.set()
    await until(lambda: triton.open == 0)
    await asyncio.sleep(0)
    assert triton.at_triton._calls
    await until(lambda: not triton.at_triton._calls)
