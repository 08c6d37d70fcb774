"""What answers may have in Triton counts before it is asked, and those that are too large are asked for no more."""

import asyncio
import gc
from functools import partial

import grpc
import pytest
from google.rpc import error_details_pb2

from inferplane.server.access.snapshot import Route
from inferplane.server.inference.dataplane import answer_reader
from inferplane.server.inference.dataplane.known_answers import AT_FIRST, UNIT, UNKNOWN
from inferplane.server.inference.dataplane.under_way import CALL_COST, Window
from tests.support.held import Held, counted, failure_or_answer, has_asked
from tests.support.mesh import detail, error_info, failure, until
from tests.support.stand import LIMIT, data_plane, echo, infer_request, target

TOO_OFTEN = AT_FIRST // 2
"""Answers of a little more than LIMIT, which is twice UNIT."""
SMALL = Window(capacity=8 * CALL_COST, each=4 * (CALL_COST + 100), waiting=40 * CALL_COST, waiting_each=20 * CALL_COST)


async def test_a_call_counts_for_what_its_answer_may_be_until_that_is_read() -> None:
    large, held = 16 << 20, Held()
    async with data_plane() as plane:
        answers = plane.forwarder._under_way.answers
        for values, counts in ((large // 4 + 1, UNKNOWN), (1, large), (1, large)):
            plane.triton.answer, asked = held.answer, len(plane.triton.requests)
            call = asyncio.ensure_future(plane.infer(infer_request(values=values)))
            await until(partial(has_asked, plane, asked + 1))
            assert counts <= answers.inside < counts + 1000
            held.go.set()
            await call
            assert answers.inside == 0
            held.go.clear()


async def test_who_has_had_little_is_held_back_by_nobodys_large_answers() -> None:
    held = Held()
    async with data_plane(window=Window(answers=UNKNOWN)) as plane:
        await plane.infer(user="bob")
        plane.triton.answer = held.answer
        plane.forwarder._known.of(plane.routes[0]).came("users/alice", 2 * UNKNOWN)
        calls = [asyncio.ensure_future(plane.infer()) for _ in range(5)]
        await until(lambda: plane.forwarder._under_way.answers.waiting > 0)
        plane.triton.answer = echo
        await plane.infer(user="bob", timeout=2)
        held.go.set()
        await asyncio.gather(*calls)


@pytest.mark.parametrize(
    ("window", "at_once"),
    [
        (Window(answers_each=2 * UNKNOWN), 2),
        (Window(answers=3 * UNKNOWN), 3),
    ],
)
async def test_of_what_answers_may_be_so_many_bytes_are_a_callers_and_everybodys(window: Window, at_once: int) -> None:
    held = Held()
    async with data_plane(window=window) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(plane.infer()) for _ in range(8)]
        await until(lambda: plane.forwarder._under_way.answers.waiting > 0)
        await until(partial(has_asked, plane, at_once))
        await until(lambda: plane.forwarder._under_way.requests.inside > 8 * CALL_COST)
        assert len(plane.triton.requests) == at_once
        held.go.set()
        await asyncio.gather(*calls)
        assert plane.forwarder._under_way.answers.inside == 0


async def test_beside_others_they_are_fewer() -> None:
    held = Held()
    window = Window(answers_each=1 << 40, answers_each_beside=2 * UNKNOWN)
    async with data_plane(window=window) as plane:
        plane.forwarder._known.of(plane.routes[0]).came("users/carol", 1 << 20)
        await plane.infer(user="bob")
        plane.triton.answer, asked = held.answer, len(plane.triton.requests)
        calls = [asyncio.ensure_future(plane.infer()) for _ in range(10)]
        await until(lambda: plane.forwarder._under_way.answers.waiting > 0)
        await until(partial(has_asked, plane, asked + 2))
        held.go.set()
        await asyncio.gather(*calls)


async def test_who_waits_counts_for_what_is_known_by_then() -> None:
    """The first answer of a slow version frees those who wait for it, all at once."""
    held = Held()
    async with data_plane(window=Window(answers_each=2 * UNKNOWN)) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(plane.infer()) for _ in range(10)]
        await until(lambda: plane.forwarder._under_way.answers.waiting > 7 * UNKNOWN)
        still = Held()
        plane.triton.answer = still.answer
        held.go.set()
        await until(partial(has_asked, plane, 10))
        still.go.set()
        await asyncio.gather(*calls)


async def test_after_a_stall_the_next_calls_are_let_in() -> None:
    """Those that were given up have no answer in Triton, and hold no room for one."""
    held = Held()
    async with data_plane(window=Window(answers_each=2 * UNKNOWN)) as plane:
        plane.triton.answer = held.answer
        await asyncio.gather(*(failure(plane.infer(timeout=0.2)) for _ in range(10)))
        await until(lambda: plane.forwarder._under_way.answers.inside == 0)
        plane.triton.answer = echo
        await asyncio.gather(*(plane.infer(timeout=1) for _ in range(10)))
        held.go.set()


async def test_who_leaves_while_waiting_for_room_for_answers_counts_for_nothing() -> None:
    held = Held()
    async with data_plane(window=Window(answers_each=UNKNOWN)) as plane:
        plane.triton.answer = held.answer
        call = asyncio.ensure_future(plane.infer())
        await until(partial(has_asked, plane, 1))
        waiting = asyncio.ensure_future(plane.infer())
        await until(lambda: plane.forwarder._under_way.answers.waiting > 0)
        waiting.cancel()
        await until(lambda: plane.forwarder._under_way.answers.waiting == 0)
        held.go.set()
        await call
        assert counted(plane, "alice") == 0


async def test_who_waits_for_room_for_answers_is_admitted_anew() -> None:
    held = Held()
    async with data_plane(window=Window(answers_each=UNKNOWN)) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(failure_or_answer(plane.infer())) for _ in range(2)]
        await until(lambda: plane.forwarder._under_way.answers.waiting > 0)
        plane.grants.clear()
        held.go.set()
        errors = [each for each in await asyncio.gather(*calls) if isinstance(each, grpc.aio.AioRpcError)]
        assert [error_info(error).reason for error in errors] == ["PERMISSION_DENIED"]
        assert (plane.forwarder._under_way.answers.inside, plane.forwarder.under_way) == (0, 0)


async def test_whose_answers_were_too_large_too_often_is_refused_before_triton_is_asked() -> None:
    async with data_plane() as plane:
        plane.triton.answer = lambda _request: bytes(LIMIT + 1)
        for _ in range(TOO_OFTEN):
            error = await failure(plane.infer())
            assert "bytes" in error_info(error).metadata["detail"]
        error = await failure(plane.infer())
        assert error_info(error).reason == "MESSAGE_TOO_LARGE"
        assert "any size" in error_info(error).metadata["detail"]
        assert detail(error, error_details_pb2.RetryInfo())
        assert len(plane.triton.requests) == TOO_OFTEN
        plane.triton.answer = echo
        await plane.infer(user="bob")


async def test_who_waited_while_his_answers_were_too_large_too_often_is_refused() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(failure_or_answer(plane.infer())) for _ in range(5)]
        await until(lambda: plane.forwarder._under_way.requests.waiting > 0)
        known = plane.forwarder._known.of(plane.routes[0])
        for _ in range(AT_FIRST):
            known.was_refused("users/alice", LIMIT + 1)
        held.go.set()
        errors = [each for each in await asyncio.gather(*calls) if isinstance(each, grpc.aio.AioRpcError)]
        assert [error_info(error).reason for error in errors] == ["MESSAGE_TOO_LARGE"]
        assert (len(plane.triton.requests), counted(plane, "alice")) == (4, 0)


async def test_an_answer_that_is_too_large_counts_also_where_nobody_waits_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with data_plane(window=Window(answers_each=AT_FIRST * LIMIT)) as plane:
        turns = plane.forwarder._reader._others
        assert turns.try_enter("users/alice", answer_reader.OTHERS_EACH)
        plane.triton.answer = lambda _request: bytes(LIMIT + 1)
        for _ in range(AT_FIRST):
            await failure(plane.infer(timeout=0.2))
        turns.leave("users/alice", answer_reader.OTHERS_EACH)
        await until(lambda: counted(plane, "alice") == 0)
        assert "any size" in error_info(await failure(plane.infer())).metadata["detail"]
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_an_answer_that_nobody_waits_for_any_more_counts_until_it_is_read() -> None:
    async with data_plane() as plane:
        await plane.infer(infer_request(values=1 << 20))
        turns = plane.forwarder._reader._large
        assert turns.try_enter("users/alice", answer_reader.TOGETHER)
        assert (await failure(plane.infer(timeout=0.3))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        left = asyncio.ensure_future(plane.infer())
        await until(lambda: len(plane.triton.requests) == 3)
        left.cancel()
        await until(lambda: not plane.server.calls.open)
        assert counted(plane, "alice") > 2 * CALL_COST
        turns.leave("users/alice", answer_reader.TOGETHER)
        await until(lambda: counted(plane, "alice") == 0)
        assert (turns.inside, turns.waiting) == (0, 0)


async def test_who_waits_while_the_version_is_replaced_counts_for_what_is_known_of_the_new_one() -> None:
    held = Held()
    async with data_plane(window=Window(each=4 * (CALL_COST + 100), answers_each=2 * UNKNOWN)) as plane:
        await plane.infer()
        plane.triton.answer, asked = held.answer, len(plane.triton.requests)
        calls = [asyncio.ensure_future(plane.infer()) for _ in range(8)]
        await until(partial(has_asked, plane, asked + 4))
        plane.routes[:] = [Route("m", target(2), ready=True, others=(target(1),))]
        still = Held()
        still.version = "2"
        plane.triton.answer = still.answer
        held.go.set()
        await until(lambda: plane.forwarder._under_way.answers.inside == 2 * UNKNOWN)
        await until(partial(has_asked, plane, asked + 6))
        still.go.set()
        await asyncio.gather(*calls)
        assert counted(plane, "alice") == 0


async def test_an_answer_that_is_refused_for_its_size_counts_as_large_as_one_that_is_taken() -> None:
    async with data_plane() as plane:
        plane.triton.answer = lambda _request: bytes(LIMIT + 1)
        assert (await failure(plane.infer())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        known = plane.forwarder._known.of(plane.routes[0])
        assert (known.expected("users/alice"), known.may_be("users/alice")) == (UNIT, UNIT)


async def test_the_answer_of_a_call_that_nobody_waits_for_has_its_room_until_it_is_over() -> None:
    held = Held()
    async with data_plane() as plane:
        answers = plane.forwarder._under_way.answers
        size = (await plane.infer(infer_request(values=2 << 20))).ByteSize()
        plane.triton.answer = held.answer
        await asyncio.gather(*(failure(plane.infer(timeout=0.3)) for _ in range(3)))
        assert answers.inside == 3 * size
        held.go.set()
        await until(lambda: answers.inside == 0)
        assert (plane.triton.cancelled, len(plane.triton.requests)) == (0, 4)
