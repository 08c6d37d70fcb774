"""One caller's predictions do not take what others need."""

import asyncio
import gc
from functools import partial
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from inferplane.server.access.snapshot import GrantRow, Route
from inferplane.server.inference.dataplane import answer_reader, given_up
from inferplane.server.inference.dataplane.known_answers import AT_FIRST, UNIT, UNKNOWN
from inferplane.server.inference.dataplane.under_way import CALL_COST, Window
from tests.support.mesh import detail, error_info, failure, until
from tests.support.stand import LIMIT, data_plane, echo, infer_request, target

TOO_OFTEN = AT_FIRST // 2
"""Answers of a little more than LIMIT, which is twice UNIT."""
SMALL = Window(capacity=8 * CALL_COST, each=4 * (CALL_COST + 100), waiting=40 * CALL_COST, waiting_each=20 * CALL_COST)


class Held:
    """A Triton whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.version = "1"

    async def answer(self, request: Any) -> Any:
        await self.go.wait()
        return echo(request, self.version)


def has_asked(plane: Any, times: int) -> bool:
    """Whether Triton has had so many requests."""
    return len(plane.triton.requests) == times


def users(plane: Any, count: int) -> list[str]:
    """So many who may call everything."""
    names = [f"user{number}" for number in range(count)]
    plane.grants.extend(GrantRow(f"users/{name}", "caller", "*") for name in names)
    return names


async def test_a_caller_has_no_more_under_way_than_its_share_and_another_is_served_at_once() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        alices = [asyncio.ensure_future(plane.infer()) for _ in range(15)]
        await until(lambda: len(plane.triton.requests) == 4)
        plane.triton.answer = echo
        await plane.infer(user="bob")
        assert len(plane.triton.requests) == 5
        held.go.set()
        await asyncio.gather(*alices)


async def test_all_callers_together_have_no_more_under_way_than_the_capacity() -> None:
    held = Held()
    async with data_plane(window=SMALL._replace(capacity=3 * CALL_COST + 300)) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(plane.infer(user=name)) for name in users(plane, 5)]
        await until(lambda: plane.forwarder.under_way > 5 * CALL_COST)
        await until(partial(has_asked, plane, 3))
        held.go.set()
        await asyncio.gather(*calls)


async def test_no_more_waits_of_all_callers_than_may() -> None:
    held = Held()
    async with data_plane(window=SMALL._replace(capacity=CALL_COST, waiting=3 * CALL_COST + 300)) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(plane.infer(user=name)) for name in users(plane, 4)]
        await until(lambda: plane.forwarder.under_way > 4 * CALL_COST)
        assert error_info(await failure(plane.infer(timeout=5))).reason == "OVERLOADED"
        held.go.set()
        await asyncio.gather(*calls)


async def test_a_call_counts_for_what_its_answer_may_be_until_that_is_read() -> None:
    large, held = 16 << 20, Held()
    async with data_plane() as plane:
        answers = plane.forwarder._under_way._answers
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
        await until(lambda: plane.forwarder._under_way._answers.waiting > 0)
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
        await until(lambda: plane.forwarder._under_way._answers.waiting > 0)
        await until(partial(has_asked, plane, at_once))
        await until(lambda: plane.forwarder._under_way._requests.inside > 8 * CALL_COST)
        assert len(plane.triton.requests) == at_once
        held.go.set()
        await asyncio.gather(*calls)
        assert plane.forwarder._under_way._answers.inside == 0


async def test_beside_others_they_are_fewer() -> None:
    held = Held()
    window = Window(answers_each=1 << 40, answers_each_beside=2 * UNKNOWN)
    async with data_plane(window=window) as plane:
        plane.forwarder._known.of(plane.routes[0]).came("users/carol", 1 << 20)
        await plane.infer(user="bob")
        plane.triton.answer, asked = held.answer, len(plane.triton.requests)
        calls = [asyncio.ensure_future(plane.infer()) for _ in range(10)]
        await until(lambda: plane.forwarder._under_way._answers.waiting > 0)
        await until(partial(has_asked, plane, asked + 2))
        held.go.set()
        await asyncio.gather(*calls)


async def test_who_waits_counts_for_what_is_known_by_then() -> None:
    """The first answer of a slow version frees those who wait for it, all at once."""
    held = Held()
    async with data_plane(window=Window(answers_each=2 * UNKNOWN)) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(plane.infer()) for _ in range(10)]
        await until(lambda: plane.forwarder._under_way._answers.waiting > 7 * UNKNOWN)
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
        await until(lambda: plane.forwarder._under_way._answers.inside == 0)
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
        await until(lambda: plane.forwarder._under_way._answers.waiting > 0)
        waiting.cancel()
        await until(lambda: plane.forwarder._under_way._answers.waiting == 0)
        held.go.set()
        await call
        assert counted(plane, "alice") == 0


async def test_who_waits_for_room_for_answers_is_admitted_anew() -> None:
    held = Held()
    async with data_plane(window=Window(answers_each=UNKNOWN)) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(failure_or_answer(plane.infer())) for _ in range(2)]
        await until(lambda: plane.forwarder._under_way._answers.waiting > 0)
        plane.grants.clear()
        held.go.set()
        errors = [each for each in await asyncio.gather(*calls) if isinstance(each, grpc.aio.AioRpcError)]
        assert [error_info(error).reason for error in errors] == ["PERMISSION_DENIED"]
        assert (plane.forwarder._under_way._answers.inside, plane.forwarder.under_way) == (0, 0)


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
        await until(lambda: plane.forwarder._under_way._requests.waiting > 0)
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


async def test_a_call_that_nobody_waits_for_is_ended() -> None:
    held = Held()
    async with data_plane() as plane:
        plane.triton.answer = held.answer
        await failure(plane.infer(timeout=0.2))
        await until(lambda: plane.triton.cancelled == 1)
        left = asyncio.ensure_future(plane.infer())
        await until(partial(has_asked, plane, 2))
        left.cancel()
        await until(lambda: plane.triton.cancelled == 2)


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
        await until(lambda: plane.forwarder._under_way._answers.inside == 2 * UNKNOWN)
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


async def test_beyond_what_may_wait_a_call_is_refused_at_once_and_told_when_to_come_back() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(failure_or_answer(plane.infer())) for _ in range(60)]
        await until(lambda: sum(call.done() for call in calls) > 30)
        refused = [call.result() for call in calls if call.done()]
        assert all(isinstance(error, grpc.aio.AioRpcError) for error in refused)
        assert {error_info(error).reason for error in refused} == {"OVERLOADED"}
        async with asyncio.timeout(1):
            one_more = await failure(plane.infer())
        come_back = error_details_pb2.RetryInfo()
        assert detail(one_more, come_back)
        assert 0 < come_back.retry_delay.ToTimedelta().total_seconds() <= 5
        held.go.set()
        await asyncio.gather(*calls)


async def failure_or_answer(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error


async def test_calls_whose_clients_left_do_not_make_the_next_one_wait() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(plane.infer()) for _ in range(15)]
        await until(lambda: len(plane.triton.requests) == 4)
        for call in calls:
            call.cancel()
        await until(lambda: not plane.server.calls._calls)
        plane.triton.answer = echo
        await plane.infer(timeout=2 * given_up.KEPT)
        assert len(plane.triton.requests) == 5


async def test_a_call_that_waits_longer_than_its_client_would_is_a_missed_deadline() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(plane.infer()) for _ in range(4)]
        await until(lambda: len(plane.triton.requests) == 4)
        error = await failure(plane.infer(timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        held.go.set()
        await asyncio.gather(*calls)


async def test_calls_that_are_given_up_keep_their_place_until_triton_has_ended_another() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        slow = asyncio.ensure_future(plane.infer(timeout=20))
        await until(lambda: len(plane.triton.requests) == 1)
        for _ in range(2):
            await failure(plane.infer(timeout=0.2))
        await until(lambda: len(plane.server.calls._calls) == 1)
        assert counted(plane, "alice") == 3 * (CALL_COST + len(infer_request().SerializeToString()))
        held.go.set()
        await slow
        await until(lambda: counted(plane, "alice") == 0)


async def test_what_triton_refuses_frees_no_place_of_calls_that_were_given_up() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        await failure(plane.infer(timeout=0.2))
        plane.triton.answer = lambda _request: grpc.StatusCode.INVALID_ARGUMENT
        await failure(plane.infer())
        assert counted(plane, "alice") == CALL_COST + len(infer_request().SerializeToString())
        plane.triton.answer = echo
        await plane.infer()
        assert counted(plane, "alice") == 0
        held.go.set()


async def test_calls_that_one_gave_up_take_no_room_from_others() -> None:
    held = Held()
    async with data_plane(window=SMALL._replace(capacity=4 * CALL_COST + 400)) as plane:
        plane.triton.answer = held.answer
        for _ in range(4):
            await failure(plane.infer(timeout=0.2))
        await until(lambda: plane.forwarder._under_way._requests.inside == 0)
        assert counted(plane, "alice") == 4 * (CALL_COST + len(infer_request().SerializeToString()))
        plane.triton.answer = echo
        await plane.infer(user="bob", timeout=1)
        held.go.set()


def counted(plane: Any, user: str) -> int:
    """The cost that counts against a caller."""
    share = plane.forwarder._under_way._requests._shares.get(f"users/{user}")
    return 0 if share is None else int(share.inside)


async def test_the_place_of_a_call_that_was_given_up_is_free_before_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_up, "KEPT", 0.3)
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        await failure(plane.infer(timeout=0.2))
        assert counted(plane, "alice") > 0
        await until(lambda: counted(plane, "alice") == 0)
        held.go.set()


async def test_a_call_that_waited_is_judged_by_the_version_that_is_served_then() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(plane.infer()) for _ in range(5)]
        await until(lambda: len(plane.triton.requests) == 4)
        plane.routes[:] = [Route("m", target(2), ready=True, others=(target(1),))]
        plane.triton.answer = partial(echo, version="2")
        held.go.set()
        answers = await asyncio.gather(*calls)
        assert sorted(answer.model_version for answer in answers) == ["1", "1", "1", "1", "2"]


async def test_an_answer_of_a_version_that_has_come_since_is_taken() -> None:
    held = Held()
    async with data_plane() as plane:
        plane.triton.answer = held.answer
        call = asyncio.ensure_future(plane.infer())
        await until(lambda: len(plane.triton.requests) == 1)
        plane.routes[:] = [Route("m", target(2), ready=True, others=(target(1),))]
        held.version = "2"
        held.go.set()
        assert (await call).model_version == "2"
        assert plane.notes.batch()[0].target.version == 2


async def test_a_call_that_waited_while_its_grant_went_is_refused() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(failure_or_answer(plane.infer())) for _ in range(5)]
        await until(lambda: len(plane.triton.requests) == 4)
        await until(lambda: plane.forwarder._under_way._requests.waiting > 0)
        plane.grants.clear()
        held.go.set()
        errors = [each for each in await asyncio.gather(*calls) if isinstance(each, grpc.aio.AioRpcError)]
        assert [error_info(error).reason for error in errors] == ["PERMISSION_DENIED"]
        assert len(plane.triton.requests) == 4
        assert plane.forwarder._under_way._requests.inside == 0


async def test_a_call_that_waited_while_its_session_ended_is_refused() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(failure_or_answer(plane.infer())) for _ in range(5)]
        await until(lambda: len(plane.triton.requests) == 4)
        await until(lambda: plane.forwarder._under_way._requests.waiting > 0)
        plane.revoked.append("sessions/alice")
        held.go.set()
        errors = [each for each in await asyncio.gather(*calls) if isinstance(each, grpc.aio.AioRpcError)]
        assert [error_info(error).reason for error in errors] == ["SESSION_ENDED"]
