"""Whose answer is read when."""

import asyncio
import time

import pytest

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import Presence
from inferplane.server.inference.dataplane import answer_reader
from inferplane.server.inference.dataplane.answer_reader import UNASKED
from inferplane.server.inference.dataplane.known_answers import ENOUGH, LARGE
from tests.support.mesh import until
from tests.support.reading import (
    BREAKS,
    CALLERS,
    FAILS,
    LARGER,
    TINY,
    FailedError,
    Reader,
    len_of,
    reader_with,
    settled,
)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Beside others; a place is free as soon as its answer was read."""
    return reader_with(monkeypatch)


async def test_answers_are_read_in_turn_until_enough_of_them_were_small(reader: Reader) -> None:
    for _ in range(ENOUGH):
        await reader.read(TINY)
    assert reader.triton.at_once == 0
    await reader.read(TINY)
    assert reader.triton.at_once == 1


async def test_after_one_large_answer_they_are_read_in_turn_however_many_small_ones_follow(reader: Reader) -> None:
    await reader.know(TINY)
    await reader.read(LARGER)
    for _ in range(ENOUGH + 1):
        await reader.read(TINY)
    assert reader.triton.at_once == 1


@pytest.mark.parametrize(("beside", "each", "all_of_them"), [(True, 2, 5), (False, 5, 5)])
async def test_large_answers_are_read_so_many_bytes_of_a_caller_and_of_all_at_once(
    monkeypatch: pytest.MonkeyPatch, beside: bool, each: int, all_of_them: int
) -> None:
    size = len_of(LARGER)
    reader = reader_with(monkeypatch, TOGETHER=5 * size, EACH_BESIDE=2 * size)
    await reader.know(LARGER)
    reader.present.here = beside
    reader.triton.go.clear()
    calls = [reader.begin(LARGER) for _ in range(9)]
    await settled()
    assert len(reader.triton.reading) == each
    calls += [reader.begin(LARGER, caller) for caller in CALLERS for _ in range(5)]
    await settled()
    assert len(reader.triton.reading) == all_of_them
    reader.triton.go.set()
    await asyncio.gather(*calls)


async def test_one_that_is_larger_than_a_callers_bytes_is_read_alone(reader: Reader) -> None:
    largest = b"%d" % (answer_reader.EACH_BESIDE + 1)
    for _ in range(2):
        await reader.read(largest)
    reader.triton.go.clear()
    calls = [reader.begin(largest) for _ in range(5)]
    await settled()
    assert len(reader.triton.reading) == 1
    reader.triton.go.set()
    await asyncio.gather(*calls)


async def test_callers_take_turns(reader: Reader) -> None:
    """Bob's first is read before Alice's third, though all of hers came first."""
    largest = b"%d" % (answer_reader.TOGETHER + 1)
    for caller in ("alice", "bob"):
        await reader.read(largest, caller)
    reader.triton.go.clear()
    order: list[str] = []

    async def one(caller: str) -> None:
        await reader.read(largest, caller)
        order.append(caller)

    calls = [asyncio.create_task(one("alice")) for _ in range(5)]
    await settled()
    calls.append(asyncio.create_task(one("bob")))
    await settled()
    reader.triton.go.set()
    await asyncio.gather(*calls)
    assert order.index("bob") < 2


async def test_who_waits_as_unknown_waits_with_the_large_ones_when_one_was_large(reader: Reader) -> None:
    largest = b"%d" % (answer_reader.EACH_BESIDE + 1)
    reader.triton.go.clear()
    calls = [reader.begin(largest) for _ in range(10)]
    await settled()
    assert len(reader.triton.reading) == 2
    reader.triton.most = 0
    reader.triton.go.set()
    await asyncio.gather(*calls)
    # The second may still be read when the first of the others is.
    assert reader.triton.most <= 2
    reader.triton.most = 0
    await asyncio.gather(*(reader.read(largest) for _ in range(5)))
    assert reader.triton.most == 1


async def test_nobody_whose_answers_are_small_waits_for_large_ones_even_of_the_same_deployment(reader: Reader) -> None:
    largest = b"%d" % (answer_reader.TOGETHER + 1)
    await reader.know(TINY, "small")
    for caller in ("alice", "bob", "carol"):
        await reader.read(largest, caller)
    reader.triton.go.clear()
    large = [reader.begin(largest, caller) for caller in ("alice", "bob", "carol")]
    await settled()
    small = [reader.begin(TINY, "dave", name) for name in ("small", "new", "m")]
    await settled()
    assert (reader.triton.open, reader.triton.reading.count(TINY)) == (1, 2)
    reader.triton.go.set()
    await asyncio.gather(*large, *small)


async def test_small_answers_of_one_caller_that_wait_with_large_ones_take_one_turn_together(reader: Reader) -> None:
    largest = b"%d" % (answer_reader.TOGETHER + 1)
    for caller in ("alice", "bob"):
        await reader.read(largest, caller)
    await until(lambda: reader.idle)
    reader.triton.go.clear()
    order: list[str] = []

    async def one(body: bytes, caller: str) -> None:
        await reader.read(body, caller)
        order.append(caller)

    calls = [asyncio.create_task(one(largest, "bob")) for _ in range(3)]
    await settled()
    calls += [asyncio.create_task(one(TINY, "alice")) for _ in range(10)]
    await settled()
    assert len(reader.triton.reading) == 1
    reader.triton.go.set()
    await asyncio.gather(*calls)
    assert order == ["bob", *["alice"] * 10, "bob", "bob"]


async def test_an_answer_that_could_not_be_read_hands_its_turn_to_the_next_caller(reader: Reader) -> None:
    largest = b"%d" % (answer_reader.TOGETHER + 1)
    for caller in ("alice", "bob"):
        await reader.read(largest, caller)
    await until(lambda: reader.idle)
    reader.triton.go.clear()
    reader.triton.order.clear()
    broken = [reader.begin(BREAKS) for _ in range(2)]
    await settled()
    bobs = reader.begin(largest, "bob")
    await settled()
    reader.triton.go.set()
    await asyncio.wait([*broken, bobs], return_when=asyncio.ALL_COMPLETED)
    assert reader.triton.order == [BREAKS, largest, BREAKS]


async def test_no_more_than_so_many_answers_come_unasked_even_where_all_were_small(reader: Reader) -> None:
    await reader.know(TINY)
    reader.triton.go.clear()
    calls = [reader.begin(TINY, f"user{number}") for number in range(2 * UNASKED)]
    await settled()
    assert reader.triton.open == UNASKED
    reader.triton.go.set()
    await asyncio.gather(*calls)
    assert reader.triton.open == 0


async def test_a_call_that_failed_says_so_out_of_turn(reader: Reader) -> None:
    await reader.know(LARGER)
    reader.triton.go.clear()
    calls = [reader.begin(LARGER) for _ in range(100)]
    await settled()
    with pytest.raises(FailedError):
        await reader.read(FAILS)
    reader.triton.go.set()
    await asyncio.gather(*calls)


async def test_who_comes_to_no_turn_in_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_with(monkeypatch, EACH_BESIDE=1)
    await reader.know(LARGER)
    reader.triton.go.clear()
    first = reader.begin(LARGER)
    await settled()
    with pytest.raises(InferplaneError) as late:
        await reader.read(LARGER, seconds=0.05)
    assert late.value.reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
    reader.triton.go.set()
    await first
    await until(lambda: reader.idle)


async def test_who_is_not_answered_in_time_is_told_also_where_reading_has_begun(reader: Reader) -> None:
    await reader.know(LARGER)
    reader.triton.go.clear()
    with pytest.raises(InferplaneError) as late:
        await reader.read(LARGER, seconds=0.05)
    assert late.value.reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
    assert len(reader.triton.reading) == 1
    reader.triton.go.set()
    await until(lambda: reader.idle)


async def test_an_answer_is_read_in_its_turn_also_where_nobody_waits_for_it_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = reader_with(monkeypatch, EACH_BESIDE=1)
    await reader.know(LARGER)
    reader.triton.go.clear()
    reading, waiting = reader.begin(LARGER), reader.begin(LARGER)
    await settled()
    for call in (waiting, reading):
        call.cancel()
    await asyncio.gather(reading, waiting, return_exceptions=True)
    assert (len(reader.triton.reading), reader.idle) == (1, False)
    reader.triton.read_to_the_end = 0
    reader.triton.go.set()
    await until(lambda: reader.idle)
    assert reader.triton.read_to_the_end == 2


async def test_beside_callers_of_small_answers_large_ones_come_at_a_rate_however_many_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = reader_with(monkeypatch, RATE=len_of(LARGER) * 20)
    reader.small.here = False
    await reader.know(LARGER)
    reader.small.here = True
    began = time.monotonic()
    await asyncio.gather(*(reader.read(LARGER, caller) for caller in CALLERS for _ in range(2)))
    await until(lambda: reader.idle)
    assert time.monotonic() - began >= 8 / 20


async def test_nobody_is_slowed_down_for_the_sake_of_callers_of_large_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_with(monkeypatch, RATE=len_of(LARGER))
    reader.small.here = False
    await reader.know(LARGER)
    await reader.know(TINY, "small")
    reader._with_small = Presence()
    for caller in ("alice", "bob"):
        await reader.read(LARGER, caller)
        assert reader.idle
    await reader.read(TINY, "dave", "small")
    await reader.read(LARGER)
    assert not reader.idle


async def test_small_answers_leave_their_place_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_with(monkeypatch, RATE=LARGE * 10_000)
    await reader.read(b"%d" % (LARGE * 1000))
    await until(lambda: reader.idle)
    await reader.read(TINY)
    assert reader.idle


async def test_of_callers_without_large_answers_so_many_are_read_at_once(reader: Reader) -> None:
    reader.triton.go.clear()
    calls = [reader.begin(TINY, caller) for caller in CALLERS for _ in range(3)]
    await settled()
    assert len(reader.triton.reading) == answer_reader.OTHERS_TOGETHER
    reader.triton.go.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("known", [TINY, LARGER])
async def test_triton_is_not_asked_what_comes_too_late(reader: Reader, known: bytes) -> None:
    await reader.know(known)
    reader.triton.asked = 0
    with pytest.raises(InferplaneError) as late:
        await reader.read(known, seconds=-0.01)
    assert late.value.reason == ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED
    assert (reader.triton.asked, reader.idle) == (0, True)


async def test_answers_that_were_never_very_large_are_read_in_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_with(monkeypatch, LEAST_COST=answer_reader.TOGETHER // 4)
    await reader.know(LARGER)
    reader.present.here = False
    reader.triton.go.clear()
    calls = [reader.begin(LARGER) for _ in range(10)]
    await settled()
    assert len(reader.triton.reading) == 4
    reader.triton.go.set()
    await asyncio.gather(*calls)
