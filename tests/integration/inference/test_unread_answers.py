"""Callers who do not read their answers hold no more than their share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from inferplane.inference.v1.inference_service_pb2 import PredictRequest
from inferplane.server.inference.dataplane import at_triton, unread
from inferplane.server.inference.dataplane.under_way import Window
from tests.support.http2 import RawConnection, raw_connection
from tests.support.mesh import reason, until
from tests.support.paths import INFER, PREDICT, STREAM
from tests.support.stand import DataPlane, as_user, data_plane, echo, infer_request

MIB = 1 << 20
LARGE = infer_request(values=MIB // 4).SerializeToString()
FRAMED = b"\0" + len(LARGE).to_bytes(4, "big") + LARGE


async def ask(connection: RawConnection) -> int:
    stream = await connection.open(INFER, as_user())
    await connection.send(stream, FRAMED, last=True)
    return stream


@asynccontextmanager
async def left_unread(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DataPlane]:
    """A data plane whose caller has left as much unread as she may."""
    monkeypatch.setattr(unread, "EACH", 4 * MIB)
    async with data_plane() as plane, raw_connection(plane.address) as connection:
        connection.reads_answers = False
        for _ in range(4):
            await ask(connection)
        await until_refused(plane)
        yield plane


async def test_unread_answers_of_a_caller_are_bounded_and_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async with left_unread(monkeypatch) as plane:
        refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert await reason(plane.infer()) == refused
        await plane.infer(user="bob")


async def test_answers_that_were_asked_for_together_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "EACH", 4 * MIB)
    monkeypatch.setattr(at_triton, "UNTRIED", 20)
    go = asyncio.Event()

    async def held_back(request: Any) -> Any:
        await go.wait()
        return echo(request)

    wide = Window(each=128 * MIB, answers_each=1 << 40, answers=1 << 40)
    async with data_plane(window=wide) as plane, raw_connection(plane.address) as connection:
        plane.triton.answer = held_back
        connection.reads_answers = False
        streams = [await ask(connection) for _ in range(20)]
        await until(lambda: len(plane.triton.requests) == 20)
        go.set()
        await until(lambda: len(connection.ended) == 20 - 4, timeout=30)
        assert {connection.trailers[stream]["grpc-status"] for stream in connection.ended} == {"8"}
        assert plane.unread._total < 6 * MIB
        assert len(streams) == 20


async def test_unread_answers_of_typed_predictions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "EACH", 4 * MIB)
    request = PredictRequest(deployment="deployments/m")
    request.inputs.add(name="x", datatype="FP32", shape=[MIB // 4], raw=bytes(MIB))
    body = request.SerializeToString()
    async with data_plane() as plane, raw_connection(plane.address) as connection:
        connection.reads_answers = False
        for _ in range(8):
            stream = await connection.open(PREDICT, as_user())
            await connection.send(stream, b"\0" + len(body).to_bytes(4, "big") + body, last=True)
        await until(lambda: len(connection.ended) == 4, timeout=30)
        assert {connection.trailers[stream]["grpc-status"] for stream in connection.ended} == {"8"}
        await until_refused(plane)
    await until(lambda: plane.unread._total == 0)


async def until_refused(plane: Any) -> None:
    def held() -> bool:
        return bool(plane.unread._held["users/alice"] >= unread.EACH)

    await until(held)


async def test_a_message_of_a_stream_that_is_refused_for_them_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with left_unread(monkeypatch) as plane:
        call = plane.stream()
        await call.write(infer_request().SerializeToString())
        reply = service_pb2.ModelStreamInferResponse.FromString(await call.read())
        assert "too many answers have not been read" in reply.error_message
        assert plane.count("inferplane_predictions_total", deployment="m", code="RESOURCE_EXHAUSTED") == 1
        assert [note.status_code for note in plane.notes.batch()][-1] == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        call.cancel()


async def test_what_is_not_read_is_let_go_with_its_connection() -> None:
    async with data_plane() as plane:
        async with raw_connection(plane.address) as connection:
            connection.reads_answers = False
            await ask(connection)
            await until(lambda: plane.unread._total > MIB)
        await until(lambda: plane.unread._total == 0)


async def test_answers_that_are_read_leave_nothing_behind() -> None:
    async with data_plane() as plane:
        for _ in range(3):
            await plane.infer(LARGE)
        await until(lambda: plane.unread._total == 0)
        call = plane.stream()
        for _ in range(3):
            await call.write(LARGE)
        await call.done_writing()
        assert len([answer async for answer in call]) == 3
        await until(lambda: plane.unread._total == 0)


async def test_a_stream_that_is_left_unread_leaves_nothing_behind_when_it_ends() -> None:
    async with data_plane() as plane, raw_connection(plane.address) as connection:
        connection.reads_answers = False
        stream = await connection.open(STREAM, as_user())
        for _ in range(5):
            await connection.send(stream, FRAMED)
        await until(lambda: plane.unread._total > MIB)
        await connection.reset(stream)
        await until(lambda: plane.unread._total == 0)


async def test_the_streams_of_a_caller_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from inferplane.server.rpc import running

    monkeypatch.setattr(running, "MOST_STREAMS", 3)
    async with data_plane() as plane:
        calls = [plane.stream() for _ in range(3)]
        for call in calls:
            await call.write(infer_request().SerializeToString())
            await call.read()
        assert await reason(plane.stream().read()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        bobs = plane.stream("bob")
        await bobs.write(infer_request().SerializeToString())
        await bobs.read()
        for call in (*calls, bobs):
            call.cancel()
