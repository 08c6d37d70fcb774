"""Bodies of unary requests: who is not known gets nothing read, and nobody's bodies hold what others need."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferplane.auth.v1 import auth_service_pb2 as pb
from inferplane.server.rpc.intake import bodies
from inferplane.server.rpc.intake.arrivals import Arrivals
from inferplane.server.rpc.intake.process_memory import give_back_free_memory
from inferplane.server.rpc.intake.sockets import Sockets
from tests.support.http2 import RawConnection, raw_connection
from tests.support.mesh import error_info, failure, reason, until
from tests.support.paths import HEALTH, WHO
from tests.support.stand import as_user, running, who_am_i

MIB = 1 << 20
ENDLESS = b"\0" + (60 * MIB).to_bytes(4, "big") + bytes(60 * MIB)


async def answer(_request: Any, _context: Any) -> Any:
    return pb.WhoAmIResponse()


async def pour(connection: RawConnection, path: str, headers: list[tuple[str, str]], size: int = 60 * MIB) -> int:
    """Open a call and send a body that says it has 60 MiB, of which `size` come; the stream's number."""
    stream = await connection.open(path, headers)
    await connection.send(stream, ENDLESS[: 5 + size])
    return stream


async def test_nothing_is_read_of_a_body_whose_caller_is_not_known() -> None:
    async with running(who_am_i(answer)) as server, raw_connection(server.address) as connection:
        streams = await asyncio.gather(*(pour(connection, WHO, []) for _ in range(20)))
        assert {connection.trailers[stream]["grpc-status"] for stream in streams} == {"16"}
        assert max(connection.sent[stream] for stream in streams) <= 128 << 10


async def test_a_call_that_waits_for_its_turn_holds_little_of_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SLOW_AFTER", 1000)
    async with running(who_am_i(answer)) as server, raw_connection(server.address) as connection:
        slow = [await pour(connection, WHO, as_user(), 10) for _ in range(bodies.QUICK_EACH)]
        waiting = asyncio.create_task(pour(connection, WHO, as_user()))
        await until(lambda: len(connection.sent) > len(slow) and max(connection.sent.values()) > 60_000)
        assert max(connection.sent.values()) <= 128 << 10
        waiting.cancel()


async def test_many_small_bodies_that_come_slowly_are_all_answered() -> None:
    async with running(who_am_i(answer)) as server, raw_connection(server.address) as connection:
        streams = [await connection.open(WHO, as_user()) for _ in range(60)]
        body = b"\0" + (20).to_bytes(4, "big") + b"\x0a\x12" + bytes(18)
        for part in (body[:7], body[7:15], body[15:]):
            for stream in streams:
                await connection.send(stream, part, last=part is body[15:])
            await asyncio.sleep(2 * bodies.SLOW_AFTER)
        await until(lambda: connection.ended >= set(streams))
        assert {connection.trailers[stream]["grpc-status"] for stream in streams} == {"3"}


async def test_slow_bodies_that_hold_too_much_are_refused_and_others_served() -> None:
    # What other tests have let go would be used again, and this process would not grow.
    give_back_free_memory()
    async with (
        running(who_am_i(answer), slow_body_budget=32 * MIB) as server,
        raw_connection(server.address) as connection,
    ):
        pouring = asyncio.gather(*(pour(connection, WHO, as_user(), 30 * MIB) for _ in range(10)))
        await until(lambda: len(connection.ended) >= 3, timeout=30)
        assert {connection.trailers[stream]["grpc-status"] for stream in connection.ended} == {"8"}
        for user in ("alice", "bob"):
            await server.call(user=user)
        pouring.cancel()


async def test_anonymous_bodies_do_not_take_the_places_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SLOW_AFTER", 1000)
    async with running(who_am_i(answer)) as server, raw_connection(server.address) as anonymous:
        for _ in range(2 * bodies.QUICK):
            await pour(anonymous, HEALTH, [], 10)
        await server.call(timeout=10)


async def test_health_answers_beside_calls_from_its_address_that_never_send_their_body() -> None:
    async with running(who_am_i(answer)) as server, raw_connection(server.address) as connection:
        for _ in range(240):
            await connection.open(HEALTH)
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status == 1


async def test_a_body_must_be_whole_in_time() -> None:
    async with running(who_am_i(answer), unary=0.3) as server, raw_connection(server.address) as connection:
        stream = await pour(connection, WHO, as_user(), 10)
        await until(lambda: stream in connection.ended)
        assert connection.trailers[stream]["grpc-status"] == "4"


async def test_health_answers_while_anonymous_bodies_do_not_end() -> None:
    async with running(who_am_i(answer)) as server, raw_connection(server.address) as connection:
        for _ in range(100):
            await pour(connection, HEALTH, [], 10)
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)).status == 1


async def test_a_call_without_a_message_is_malformed() -> None:
    async with running(who_am_i(answer)) as server:
        method: Any = server.channel.stream_unary(WHO)
        call = method(iter(()), metadata=as_user())
        assert await reason(call) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_a_body_above_the_methods_own_limit_is_refused_before_it_is_parsed() -> None:
    async with running(who_am_i(answer)) as server:
        error = await failure(server.call(bytes(2 * MIB)))
        assert (error.code(), error_info(error).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
        assert str(2 * MIB) in (error.details() or "")


async def test_connections_beyond_the_limit_are_not_served() -> None:
    async with running(who_am_i(answer), max_connections=2) as server:
        await server.call()
        async with raw_connection(server.address) as second, raw_connection(server.address) as third:
            await second.open(WHO, as_user())
            await asyncio.wait_for(third.closed.wait(), 10)
            await server.call()


class Watch:
    """Looks at slow bodies, each time of which it is time to give back memory, which lasts until `released`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = self.given_back = 0
        self.released = threading.Event()
        arrivals = Arrivals(MIB, 30, lambda: (), Sockets())
        self._reader = bodies.BodyReader(arrivals)
        monkeypatch.setattr(arrivals, "look", self._look)
        monkeypatch.setattr(bodies, "give_back_free_memory", self._give_back)

    def _look(self, _now: float, _resident: int) -> bool:
        self.looks += 1
        return True

    def _give_back(self) -> None:
        self.given_back += 1
        self.released.wait(30)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(self._reader.sweep())
        try:
            yield
        finally:
            self.released.set()
            sweeping.cancel()


async def test_memory_is_given_back_where_no_thread_of_others_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, strangers = Watch(monkeypatch), threading.Event()
    watch.released.set()
    taken = [asyncio.ensure_future(asyncio.to_thread(strangers.wait, 30)) for _ in range(100)]
    try:
        async with watch.running():
            await until(lambda: watch.given_back >= 2)
    finally:
        strangers.set()
        await asyncio.gather(*taken)


async def test_slow_bodies_are_looked_after_while_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    async with watch.running():
        await until(lambda: watch.looks >= 3)
        assert watch.given_back == 1
