"""What becomes of a stream that is ended while its client does not read: the status follows the answers before it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.dataplane import unread
from inferplane.server.rpc import running as running_calls
from inferplane.server.rpc.call import current_call
from inferplane.server.rpc.interceptors.deadlines import DeadlinePolicy
from tests.support.http2 import RawConnection, raw_connection
from tests.support.mesh import reason, until
from tests.support.paths import STREAM, WHO
from tests.support.stand import (
    EMPTY_BODY,
    DataPlane,
    Stand,
    Waiting,
    as_user,
    data_plane,
    infer_request,
    running,
    who_am_i,
)

MIB = 1 << 20
LARGE = infer_request(values=MIB // 4).SerializeToString()
FRAMED = b"\0" + len(LARGE).to_bytes(4, "big") + LARGE
OVERLOADED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")


async def unread_stream(plane: DataPlane, connection: RawConnection, requests: int = 1) -> int:
    """A stream of alice's with one answer that is stuck in gRPC and the others behind it."""
    connection.reads_answers = False
    stream = await connection.open(STREAM, as_user("alice"))
    held = plane.unread.held
    for _ in range(requests):
        await connection.send(stream, FRAMED)
    await until(lambda: plane.unread.held >= held + requests * MIB)
    # The first is being written once nothing else is.
    await until(lambda: any(call._opening and call._opening.done() for call in plane.server.calls._calls))
    return stream


async def ended(plane: Stand) -> None:
    await until(lambda: not plane.server.calls._calls)


async def test_a_client_that_reads_at_last_is_told_why_its_stream_has_ended() -> None:
    async with data_plane() as plane, raw_connection(plane.address) as connection:
        stream = await unread_stream(plane, connection)
        with capture_logs() as logs:
            plane.revoked.append("sessions/alice")
            await ended(plane)
            assert stream not in connection.ended
            await connection.catch_up()
            await until(lambda: stream in connection.ended)
        assert connection.trailers[stream]["grpc-status"] == "16"
        assert connection.trailers[stream]["inferplane-request-id"]
        assert [line for line in logs if line["log_level"] == "error"] == []


async def test_an_answer_that_is_stuck_counts_as_unread_until_it_is_read() -> None:
    async with data_plane() as plane, raw_connection(plane.address) as connection:
        await unread_stream(plane, connection, 3)
        plane.revoked.append("sessions/alice")
        await ended(plane)
        assert MIB <= plane.unread.held < 2 * MIB
        await connection.catch_up()
        await until(lambda: plane.unread.held == 0)


async def test_an_answer_that_is_stuck_is_let_go_with_its_connection() -> None:
    async with data_plane() as plane:
        async with raw_connection(plane.address) as connection:
            await unread_stream(plane, connection)
            plane.revoked.append("sessions/alice")
            await ended(plane)
            assert plane.unread.held
        await until(lambda: plane.unread.held == 0)


async def test_streams_that_were_ended_unread_do_not_let_a_caller_hold_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "EACH", 3 * MIB)
    async with data_plane() as plane, raw_connection(plane.address) as connection:
        for _ in range(3):
            await unread_stream(plane, connection)
            plane.revoked.append("sessions/alice")
            await ended(plane)
            plane.revoked.clear()
        assert await reason(plane.infer()) == OVERLOADED
        await plane.infer(user="bob")


async def test_a_stream_takes_its_place_until_its_end_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_calls, "MOST_STREAMS", 1)
    async with data_plane() as plane, raw_connection(plane.address) as connection:
        await unread_stream(plane, connection)
        plane.revoked.append("sessions/alice")
        await ended(plane)
        plane.revoked.clear()
        assert await reason(plane.stream().read()) == OVERLOADED
        await connection.catch_up()
        await until(lambda: not plane.server.calls._streams_of)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_a_stream_that_is_ended_twice_leaves_nothing_behind(turns: int) -> None:
    async with data_plane() as plane:
        async with raw_connection(plane.address) as connection:
            await unread_stream(plane, connection, 4)
            (call,) = plane.server.calls._calls
            call.end(InferplaneError(ErrorReason.ERROR_REASON_SESSION_ENDED))
            for _ in range(turns):
                await asyncio.sleep(0)
            assert call.task is not None
            call.task.cancel()
            await ended(plane)
        await until(lambda: plane.unread.held == 0)


@asynccontextmanager
async def download(idle: float) -> AsyncIterator[Stand]:
    """A method that answers one MiB after the other, and ends a reader that takes none for `idle` seconds."""

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)

    async def read(_request: Any, _context: Any) -> AsyncIterator[bytes]:
        async for piece in DeadlinePolicy(30, idle, 0).pace_answers(current_call(), pieces(), len):
            yield piece

    def register(server: Any, _admission: Any, _registry: Any) -> None:
        server.add_handlers("inferplane.auth.v1.AuthService", {"WhoAmI": handler}, ())

    handler: Any = grpc.unary_stream_rpc_method_handler(read, None, bytes)
    async with running(register) as stand:
        yield stand


async def test_a_reader_that_stalls_is_told_so_when_it_reads() -> None:
    async with download(0.2) as stand, raw_connection(stand.address) as connection:
        connection.reads_answers = False
        stream = await connection.open(WHO, as_user())
        await connection.send(stream, bytes(5), last=True)
        await until(partial(bool, stand.server.calls._calls))
        await ended(stand)
        await connection.catch_up()
        await until(lambda: stream in connection.ended)
        assert connection.trailers[stream]["grpc-status"] == "4"


async def test_a_call_is_open_until_its_answer_is_sent() -> None:
    """Until then gRPC keeps what its client sends behind the message."""
    waiting = Waiting()
    waiting.go.set()
    async with running(who_am_i(waiting)) as server, raw_connection(server.address, window=0) as connection:
        stream = await connection.open(WHO, as_user())
        await connection.send(stream, EMPTY_BODY)
        await until(lambda: waiting.most == 1 and not server.server.calls._calls)
        assert len(server.server.calls.open) == 1
        await connection.reset(stream)
        await until(lambda: not server.server.calls.open)
