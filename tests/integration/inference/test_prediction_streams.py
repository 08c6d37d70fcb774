"""Streams of predictions: as Triton answers them, and no longer than their callers may."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from inferplane.server.inference.dataplane import routing, streams
from tests.support.mesh import error_info, failure, reason, until
from tests.support.stand import DataPlane, data_plane, echo, infer_request

MIB = 1 << 20


def parsed(answer: bytes) -> service_pb2.ModelStreamInferResponse:
    return service_pb2.ModelStreamInferResponse.FromString(answer)


async def exchange(plane: DataPlane, *messages: Any) -> list[service_pb2.ModelStreamInferResponse]:
    """Send all, then read all."""
    call = plane.stream()
    for message in messages:
        await call.write(message if isinstance(message, bytes) else message.SerializeToString())
    await call.done_writing()
    return [parsed(answer) async for answer in call]


async def open_stream(plane: DataPlane, user: str = "alice") -> Any:
    """A stream that was answered once."""
    call = plane.stream(user)
    await call.write(infer_request().SerializeToString())
    assert not parsed(await call.read()).error_message
    return call


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    error = await failure(call.read())
    return error.code(), error_info(error).reason


@pytest.mark.parametrize(
    "bad", [b"\xff\xff", infer_request("unheard-of"), infer_request(values=1, model_version="9")], ids=repr
)
async def test_one_bad_message_is_answered_by_an_error_and_the_others_as_ever(bad: Any) -> None:
    async with data_plane() as plane:
        good = [infer_request(id=str(number)) for number in range(4)]
        answers = await exchange(plane, *good[:2], bad, *good[2:])
        assert [bool(answer.error_message) for answer in answers] == [False, False, True, False, False]
        assert [answer.infer_response.id for answer in answers if not answer.error_message] == ["0", "1", "2", "3"]


async def test_a_request_that_fails_in_triton_does_not_end_the_stream() -> None:
    def fail_second(request: service_pb2.ModelInferRequest) -> Any:
        return grpc.StatusCode.INTERNAL if request.id == "1" else echo(request)

    async with data_plane() as plane:
        plane.triton.answer = fail_second
        answers = await exchange(plane, *(infer_request(id=str(number)) for number in range(4)))
        assert [answer.infer_response.id for answer in answers] == ["0", "1", "2", "3"]
        assert [bool(answer.error_message) for answer in answers] == [False, True, False, False]
        assert sorted(note.status_code for note in plane.notes.batch()) == [0, 0, 0, 13]


async def test_answers_come_in_the_order_of_the_requests() -> None:
    async def later_is_faster(request: service_pb2.ModelInferRequest) -> Any:
        await asyncio.sleep(0.02 * (8 - int(request.id)))
        return echo(request)

    async with data_plane() as plane:
        plane.triton.answer = later_is_faster
        answers = await exchange(plane, *(infer_request(id=str(number)) for number in range(8)))
        assert [answer.infer_response.id for answer in answers] == list("01234567")


async def test_each_answer_names_its_prediction_and_says_that_it_is_the_last() -> None:
    async with data_plane() as plane:
        answers = await exchange(plane, infer_request(), infer_request())
        said = [answer.infer_response.parameters for answer in answers]
        noted = [note.prediction_id for note in plane.notes.batch()]
        assert sorted(each[streams.PREDICTION_ID_PARAMETER].string_param for each in said) == sorted(noted)
        assert all(each["triton_final_response"].bool_param for each in said)


async def test_an_answer_as_large_as_may_be_is_given_and_so_are_those_after_it() -> None:
    def largest_second(request: service_pb2.ModelInferRequest) -> Any:
        answer = echo(request)
        if request.id == "1":
            answer.parameters["padding"].string_param = "x" * (MIB - 100)
            answer.parameters["padding"].string_param += "x" * (MIB - answer.ByteSize())
            assert answer.ByteSize() == MIB
        return answer

    async with data_plane(max_message_size=MIB) as plane:
        plane.triton.answer = largest_second
        answers = await exchange(plane, *(infer_request(id=str(number)) for number in range(4)))
        assert [answer.infer_response.id for answer in answers] == ["0", "1", "2", "3"]


async def test_what_one_stream_has_under_way_is_bounded_while_its_answers_are_not_read() -> None:
    async with data_plane() as plane:
        call = plane.stream()
        body = infer_request(values=16_384).SerializeToString()

        async def write() -> None:
            for _ in range(2000):
                await call.write(body)

        writing = asyncio.create_task(write())
        await until(lambda: len(plane.triton.requests) > streams.IN_FLIGHT)
        quiet = 0
        # What it holds beyond the bound is what the network between us has taken.
        while quiet < 20:
            before = len(plane.triton.requests)
            await asyncio.sleep(0.05)
            quiet = quiet + 1 if len(plane.triton.requests) == before else 0
        assert len(plane.triton.requests) < 200
        writing.cancel()
        call.cancel()


async def test_waiting_for_a_slow_answer_is_no_stall() -> None:
    async def slow(request: service_pb2.ModelInferRequest) -> Any:
        await asyncio.sleep(1.5)
        return echo(request)

    async with data_plane(idle=0.2) as plane:
        plane.triton.answer = slow
        assert [answer.error_message for answer in await exchange(plane, infer_request())] == [""]


async def test_an_idle_stream_is_ended() -> None:
    async with data_plane(idle=0.2) as plane:
        call = await open_stream(plane)
        assert await ended(call) == (grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_STALLED")


async def test_a_stream_that_outlives_its_token_is_ended() -> None:
    async with data_plane() as plane:
        plane.verifier.expires_at = time.time() + 0.5
        call = await open_stream(plane)
        assert await ended(call) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


async def test_a_stream_that_outlives_its_grant_is_ended_idle_as_it_is() -> None:
    async with data_plane() as plane:
        call = await open_stream(plane)
        plane.grants.clear()
        assert await ended(call) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


async def test_a_stream_that_outlives_its_session_is_ended_idle_as_it_is() -> None:
    async with data_plane() as plane:
        call = await open_stream(plane)
        plane.revoked.append("sessions/alice")
        assert await ended(call) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED")


async def test_a_prediction_of_a_session_that_has_ended_is_refused() -> None:
    async with data_plane() as plane:
        plane.revoked.append("sessions/alice")
        assert await reason(plane.infer()) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED")
        await plane.infer(user="bob")


async def test_a_stream_that_is_as_old_as_a_connection_may_be_is_ended_with_a_reason() -> None:
    async with data_plane(max_connection_age=0.6) as plane:
        call = await open_stream(plane)
        assert await ended(call) == (grpc.StatusCode.UNAVAILABLE, "STREAM_EXPIRED")


async def test_parts_of_a_sequence_reach_triton_one_after_the_other() -> None:
    under_way, most = 0, 0

    async def count(request: service_pb2.ModelInferRequest) -> Any:
        nonlocal under_way, most
        if not request.parameters:
            return echo(request)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return echo(request)

    def parts() -> list[service_pb2.ModelInferRequest]:
        made = [infer_request(id=str(number)) for number in range(9)]
        for message in made[::2]:
            message.parameters["sequence_id"].int64_param = 5
        return made

    async with data_plane() as plane:
        plane.triton.answer = count
        await exchange(plane, *parts())
        assert most == 1


@pytest.mark.parametrize("unforeseen", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
async def test_a_request_that_nobody_foresaw_is_answered_by_an_error_and_the_next_ones_go_on(
    monkeypatch: pytest.MonkeyPatch, unforeseen: type[BaseException]
) -> None:
    def broken(body: bytes) -> Any:
        raise unforeseen

    async with data_plane() as plane:
        call = await open_stream(plane)
        with monkeypatch.context() as patch:
            patch.setattr(routing, "read_envelope", broken)
            await call.write(infer_request(id="odd").SerializeToString())
            assert parsed(await call.read()).error_message == "internal error"
        await call.write(infer_request(id="2").SerializeToString())
        assert parsed(await call.read()).infer_response.id == "2"
        call.cancel()


async def test_unknown_groups_are_passed_on_as_protobuf_does() -> None:
    odd = infer_request().SerializeToString() + b"\xa3\x06\xa4\x06"
    async with data_plane() as plane:
        assert [answer.error_message for answer in await exchange(plane, odd, odd, infer_request())] == [""] * 3


async def test_while_a_part_of_a_sequence_waits_no_more_is_read() -> None:
    async def hang(_request: Any) -> Any:
        await asyncio.Event().wait()

    async with data_plane() as plane:
        plane.triton.answer = hang
        call = plane.stream()

        async def write() -> None:
            for _ in range(50):
                part = infer_request(values=MIB // 4)
                part.parameters["sequence_id"].int64_param = 5
                await call.write(part.SerializeToString())

        writing = asyncio.create_task(write())
        await until(lambda: len(plane.triton.requests) == 1)
        (running,) = plane.server.calls._calls
        await asyncio.sleep(0.5)
        assert not writing.done()
        assert len(plane.triton.requests) == 1
        assert running.method.streams
        writing.cancel()
        call.cancel()


async def test_a_client_that_leaves_leaves_nothing_running() -> None:
    async def hang(_request: Any) -> Any:
        await asyncio.Event().wait()

    async with data_plane() as plane:
        plane.triton.answer = hang
        call = plane.stream()
        await call.write(infer_request().SerializeToString())
        await until(lambda: len(plane.triton.requests) == 1)
        call.cancel()
        await until(lambda: not plane.server.calls._calls)
        assert [note.status_code for note in plane.notes.batch()] == [1]


async def messages(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield infer_request(id=str(number)).SerializeToString()


@pytest.mark.parametrize("seed", range(20))
async def test_each_request_of_a_stream_is_answered_once_and_in_order_wherever_a_bad_one_stands(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    bad = dict.fromkeys(chance.sample(range(1, 39), 3), b"\xff\xff")

    async def after_a_while(request: service_pb2.ModelInferRequest) -> Any:
        await asyncio.sleep(chance.random() / 100)
        return grpc.StatusCode.INTERNAL if request.id in failing else echo(request)

    failing = {str(number) for number in range(40) if number not in bad and chance.random() < 0.1}
    async with data_plane() as plane:
        plane.triton.answer = after_a_while
        answers = await exchange(plane, *(bad.get(number) or infer_request(id=str(number)) for number in range(40)))
        assert [number for number, answer in enumerate(answers) if answer.error_message] == sorted(
            [*bad, *map(int, failing)]
        )
        said = [answer.infer_response.id for answer in answers]
        assert said == ["" if number in bad else str(number) for number in range(40)]
        assert len(plane.notes) == 40 - len(bad)


async def test_no_answer_is_lost_where_the_client_stops_writing_at_once() -> None:
    async with data_plane() as plane:
        for _ in range(20):
            assert len(await exchange(plane, *[infer_request()] * 5)) == 5
