"""One caller's predictions do not take what others need."""

import asyncio
from functools import partial

import grpc
import pytest
from google.rpc import error_details_pb2

from inferplane.server.access.snapshot import Route
from inferplane.server.inference.dataplane import at_triton
from inferplane.server.inference.dataplane.at_triton import UNTRIED
from inferplane.server.inference.dataplane.under_way import CALL_COST, Window
from tests.support.held import Held, counted, failure_or_answer, has_asked, users
from tests.support.mesh import detail, error_info, failure, until
from tests.support.stand import data_plane, echo, infer_request, target

SMALL = Window(capacity=8 * CALL_COST, each=4 * (CALL_COST + 100), waiting=40 * CALL_COST, waiting_each=20 * CALL_COST)


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


async def test_a_call_that_nobody_waits_for_goes_on_and_counts_until_it_is_over() -> None:
    held, one = Held(), CALL_COST + len(infer_request().SerializeToString())
    async with data_plane() as plane:
        plane.triton.answer = held.answer
        await failure(plane.infer(timeout=0.2))
        left = asyncio.ensure_future(plane.infer())
        await until(partial(has_asked, plane, 2))
        left.cancel()
        await until(lambda: not plane.server.calls.open)
        assert counted(plane, "alice") == 2 * one
        held.go.set()
        await until(lambda: counted(plane, "alice") == 0)
        assert plane.triton.cancelled == 0


async def test_who_waited_until_there_was_time_is_admitted_anew() -> None:
    held = Held()
    async with data_plane() as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(failure_or_answer(plane.infer())) for _ in range(UNTRIED + 4)]
        await until(lambda: len(plane.triton.requests) == UNTRIED)
        await until(lambda: plane.forwarder._under_way.requests.inside > (UNTRIED + 4) * CALL_COST)
        plane.grants.clear()
        held.go.set()
        errors = [each for each in await asyncio.gather(*calls) if isinstance(each, grpc.aio.AioRpcError)]
        assert [error_info(error).reason for error in errors] == ["PERMISSION_DENIED"] * 4
        assert (len(plane.triton.requests), plane.forwarder.under_way) == (UNTRIED, 0)


async def test_requests_that_were_given_up_take_room_from_others_where_they_are_as_much_as_may_be_under_way() -> None:
    held, one = Held(), CALL_COST + len(infer_request().SerializeToString())
    async with data_plane(window=SMALL._replace(capacity=4 * one)) as plane:
        plane.triton.answer = held.answer
        for user in users(plane, 2):
            await asyncio.gather(*(failure(plane.infer(user=user, timeout=0.3)) for _ in range(4)))
        await until(lambda: plane.forwarder.under_way == 8 * one)
        assert plane.forwarder._under_way.requests.inside == 4 * one
        held.go.set()
        await until(lambda: plane.forwarder.under_way == 0)


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
        await plane.infer(timeout=2 * at_triton.GOES_ON)
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


async def test_calls_that_are_given_up_count_beside_those_that_are_not() -> None:
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
        held.go.set()
        await until(lambda: counted(plane, "alice") == 0)


async def test_calls_that_one_gave_up_take_no_room_from_others() -> None:
    held = Held()
    async with data_plane(window=SMALL._replace(capacity=4 * CALL_COST + 400)) as plane:
        plane.triton.answer = held.answer
        for _ in range(4):
            await failure(plane.infer(timeout=0.2))
        await until(lambda: plane.forwarder._under_way.requests.inside == 0)
        assert counted(plane, "alice") == 4 * (CALL_COST + len(infer_request().SerializeToString()))
        plane.triton.answer = echo
        await plane.infer(user="bob", timeout=1)
        held.go.set()


async def test_the_place_of_a_call_that_was_given_up_is_free_before_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_triton, "GOES_ON", 0.3)
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
        await until(lambda: plane.forwarder._under_way.requests.waiting > 0)
        plane.grants.clear()
        held.go.set()
        errors = [each for each in await asyncio.gather(*calls) if isinstance(each, grpc.aio.AioRpcError)]
        assert [error_info(error).reason for error in errors] == ["PERMISSION_DENIED"]
        assert len(plane.triton.requests) == 4
        assert plane.forwarder._under_way.requests.inside == 0


async def test_a_call_that_waited_while_its_session_ended_is_refused() -> None:
    held = Held()
    async with data_plane(window=SMALL) as plane:
        plane.triton.answer = held.answer
        calls = [asyncio.ensure_future(failure_or_answer(plane.infer())) for _ in range(5)]
        await until(lambda: len(plane.triton.requests) == 4)
        await until(lambda: plane.forwarder._under_way.requests.waiting > 0)
        plane.revoked.append("sessions/alice")
        held.go.set()
        errors = [each for each in await asyncio.gather(*calls) if isinstance(each, grpc.aio.AioRpcError)]
        assert [error_info(error).reason for error in errors] == ["SESSION_ENDED"]
