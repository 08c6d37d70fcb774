"""What callers that nobody knows may take: little, and nothing of what others need."""

import asyncio
import gzip
import socket
import time
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from structlog.testing import capture_logs
from tritonclient.grpc import service_pb2

from inferplane.auth.v1 import auth_service_pb2 as pb
from inferplane.common.v1.access_pb2 import AccessRule
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import FairGate
from inferplane.server.rpc import running as running_calls
from inferplane.server.rpc.call import Call
from inferplane.server.rpc.intake import arrivals, bodies
from inferplane.server.rpc.interceptors import observation
from inferplane.server.rpc.methods import Method
from inferplane.server.rpc.running import RunningCalls
from tests.support.http2 import RawConnection, raw_connection
from tests.support.mesh import error_info, failure, until
from tests.support.paths import HEALTH, REFLECTION, STREAM, WHO
from tests.support.stand import EMPTY_BODY, Stand, Waiting, as_user, data_plane, infer_request, running, who_am_i

MIB = 1 << 20


async def answer(_request: Any, _context: Any) -> Any:
    return pb.WhoAmIResponse()


def framed(body: bytes, *, compressed: bool = False) -> bytes:
    return bytes([compressed]) + len(body).to_bytes(4, "big") + body


async def test_compressed_bodies_are_not_taken() -> None:
    body = gzip.compress(bytes(32 * MIB))
    async with running(who_am_i(answer)) as server, raw_connection(server.address) as connection:
        stream = await connection.open(HEALTH, [("grpc-encoding", "gzip")])
        before = time.process_time()
        await connection.send(stream, framed(body, compressed=True), last=True)
        await until(lambda: stream in connection.ended)
        assert connection.trailers[stream]["grpc-status"] == "12"
        # To inflate and copy it takes ten times as long.
        assert time.process_time() - before < 0.05


async def test_a_public_method_takes_small_bodies_only() -> None:
    async with running(who_am_i(answer)) as server:
        name = health_pb2.HealthCheckRequest(service="x" * (20 << 10)).SerializeToString()
        error = await failure(server.call(name, HEALTH))
        assert (error.code(), error_info(error).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


async def pour(connection: RawConnection, streams: list[int]) -> None:
    """Messages that do not end."""
    endless = framed(bytes(60 * MIB))
    with suppress(ConnectionError):
        await asyncio.gather(*(connection.send(stream, endless[: 40 * MIB]) for stream in streams))


async def test_a_stranger_whose_messages_do_not_end_loses_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "PUBLIC_BUDGET", 16 * MIB)
    async with (
        running(who_am_i(answer)) as server,
        raw_connection(server.address) as connection,
        raw_connection(server.address) as other,
    ):
        weigh_what_is_sent(connection, monkeypatch)
        waiting = await other.open(REFLECTION)
        streams = [await connection.open(REFLECTION) for _ in range(4)]
        pouring = asyncio.create_task(pour(connection, streams))
        await until(connection.closed.is_set, timeout=30)
        assert not other.closed.is_set()
        assert waiting not in other.ended or other.trailers[waiting]["grpc-status"] == "8"
        await server.call()
        pouring.cancel()


async def test_strangers_who_wait_in_great_numbers_give_way_to_an_address_that_comes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # So that those who are let in keep their places until all others wait.
    monkeypatch.setattr(bodies, "SLOW_AFTER", 60)
    async with running(who_am_i(answer)) as server, AsyncExitStack() as stack:
        for address in ("127.0.0.2", "127.0.0.3"):
            connection = await stack.enter_async_context(raw_connection(server.address, connected(server, address)))
            for _ in range(300):
                await connection.open(HEALTH)
        gate = server.server.bodies._public_gate
        await until(lambda: gate.waiting == bodies.PUBLIC_WAITING)
        other = await stack.enter_async_context(raw_connection(server.address, connected(server, "127.0.0.4")))
        streams = [await other.open(HEALTH) for _ in range(20)]
        for stream in streams:
            await other.send(stream, EMPTY_BODY, last=True)
        await until(lambda: bool(other.ended) or waiting(gate, "127.0.0.4") == 20)
        monkeypatch.undo()
        await until(lambda: other.ended >= set(streams))
        assert {other.trailers[stream]["grpc-status"] for stream in streams} == {"0"}


def waiting(gate: FairGate, address: str) -> int:
    share = gate._shares.get(f"ipv4:{address}")
    return 0 if share is None else share.waiting


def connected(server: Stand, address: str) -> socket.socket:
    """From one of this machine's own addresses."""
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), source_address=(address, 0))


async def test_where_a_known_caller_has_calls_too_the_streams_end_and_the_connection_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arrivals, "PUBLIC_BUDGET", 16 * MIB)
    waiting = Waiting()
    async with running(who_am_i(waiting)) as server, raw_connection(server.address) as connection:
        known = await connection.open(WHO, as_user())
        await connection.send(known, EMPTY_BODY, last=True)
        await until(lambda: waiting.now == 1)
        weigh_what_is_sent(connection, monkeypatch)
        streams = [await connection.open(REFLECTION) for _ in range(4)]
        pouring = asyncio.create_task(pour(connection, streams))
        await until(lambda: connection.ended >= set(streams), timeout=30)
        assert {connection.trailers[stream]["grpc-status"] for stream in streams} == {"8"}
        waiting.go.set()
        await until(lambda: known in connection.ended)
        assert connection.trailers[known]["grpc-status"] == "0"
        pouring.cancel()


def weigh_what_is_sent(connection: RawConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the process, which uses again what earlier tests let go; tests/acceptance/test_memory.py weighs real
    workers."""

    def resident(_statm: int) -> int:
        return sum(sent for stream, sent in connection.sent.items() if stream not in connection.ended)

    monkeypatch.setattr(bodies, "resident_memory", resident)


async def test_messages_of_known_callers_streams_that_do_not_end_are_let_go_and_others_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        data_plane(slow_body_budget=16 * MIB) as plane,
        raw_connection(plane.address) as connection,
    ):
        weigh_what_is_sent(connection, monkeypatch)
        bobs = plane.stream("bob")
        streams = [await connection.open(STREAM, as_user()) for _ in range(8)]
        endless = framed(bytes(60 * MIB))
        pouring = asyncio.gather(*(connection.send(stream, endless[: 40 * MIB]) for stream in streams))
        await until(lambda: len(connection.ended) >= 4, timeout=30)
        assert {connection.trailers[stream]["grpc-status"] for stream in connection.ended} == {"8"}
        await bobs.write(infer_request().SerializeToString())
        answered = service_pb2.ModelStreamInferResponse.FromString(await bobs.read())
        assert (answered.error_message, answered.infer_response.model_name) == ("", "m")
        bobs.cancel()
        pouring.cancel()


async def test_a_check_of_a_service_that_does_not_exist_is_counted_as_it_is_answered() -> None:
    async with running(who_am_i(answer)) as server:
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        assert (await failure(stub.Check(health_pb2.HealthCheckRequest(service="nope")))).code() is (
            grpc.StatusCode.NOT_FOUND
        )
        labels = {"service": "grpc.health.v1.Health", "method": "Check"}
        # It aborts by itself, so the client may know before it is counted.
        await until(lambda: server.count("inferplane_rpc_calls_total", **labels, code="NOT_FOUND") == 1)


class Peer:
    """The context of a call from an address."""

    def __init__(self, address: str) -> None:
        self._address = address

    def peer(self) -> str:
        return self._address


async def test_streams_of_strangers_leave_the_places_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_calls, "MOST_PUBLIC_STREAMS_IN_ALL", 10)
    calls = RunningCalls(60)
    public = Method("/s/watch", "s", "watch", AccessRule(public=True), streams=True)
    known = Method(WHO, "s", "m", AccessRule(authenticated=True), streams=True)
    for number in range(10):
        context: Any = Peer(f"ipv4:192.0.2.{number}:1")
        calls.claim_stream(Call(public, context))
    other: Any = Peer("ipv4:198.51.100.1:1")
    with pytest.raises(InferplaneError):
        calls.claim_stream(Call(public, other))
    calls.claim_stream(Call(known, other))


async def test_all_addresses_of_one_ipv6_host_share_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_calls, "MOST_STREAMS", 3)
    calls = RunningCalls(60)
    public = Method("/s/watch", "s", "watch", AccessRule(public=True), streams=True)
    contexts: list[Any] = [Peer(f"ipv6:%5B2001:db8::{number}%5D:1") for number in range(4)]
    for context in contexts[:3]:
        calls.claim_stream(Call(public, context))
    with pytest.raises(InferplaneError):
        calls.claim_stream(Call(public, contexts[3]))


async def test_strangers_do_not_fill_the_log_and_leave_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "STRANGERS_LOGGED_A_SECOND", 5)
    async with running(who_am_i(answer)) as server:
        with capture_logs() as logs:
            began = time.monotonic()
            method: Any = server.channel.unary_unary(WHO)
            for _ in range(100):
                await failure(method(b""))
            await server.call()
            seconds = time.monotonic() - began
        refused = [line for line in logs if line["caller"] == "anonymous"]
        assert 0 < len(refused) <= 5 * (seconds + 2)
        assert {line["address"] for line in refused} == {"ipv4:127.0.0.1"}
        assert [line["caller"] for line in logs if line["code"] == "OK"] == ["users/alice"]


TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Traced:
    """Answers, and keeps the trace that it was called in."""

    def __init__(self) -> None:
        self.trace_id = ""
        self.state: dict[str, str] = {}

    async def answer(self, _request: Any, _context: Any) -> Any:
        context = trace.get_current_span().get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id)
        self.state = dict(context.trace_state)
        return pb.WhoAmIResponse()


async def test_a_call_goes_on_in_the_trace_of_its_client() -> None:
    traced = Traced()
    async with running(who_am_i(traced.answer)) as server:
        method: Any = server.channel.unary_unary(WHO)
        await method(b"", metadata=[*as_user(), ("traceparent", PARENT), ("tracestate", "a=1,b=2")])
    assert (traced.trace_id, traced.state) == (TRACE, {"a": "1", "b": "2"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("baggage", ",".join(["k" * 200] * 40)),
        ("traceparent", PARENT + " " * 8000),
        ("tracestate", ",".join(["k" * 200] * 40)),
        ("tracestate", "="),
        ("tracestate", ",".join(f"k{number}=v" for number in range(40))),
    ],
)
async def test_odd_headers_of_strangers_leave_no_lines_of_libraries(
    name: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(who_am_i(answer)) as server:
        method: Any = server.channel.unary_unary(WHO)
        await failure(method(b"", metadata=[("traceparent", PARENT), (name, value)]))
    assert caplog.records == []


async def test_baggage_of_strangers_takes_no_time() -> None:
    async with running(who_am_i(answer)) as server:
        method: Any = server.channel.unary_unary(WHO)
        before = time.process_time()
        for _ in range(20):
            await failure(method(b"", metadata=[("baggage", "a=b" + " " * 7500 + "c")]))
        # To parse it takes ten times as long.
        assert time.process_time() - before < 0.2


async def test_a_long_tracestate_is_left_out_of_the_trace() -> None:
    traced = Traced()
    async with running(who_am_i(traced.answer)) as server:
        method: Any = server.channel.unary_unary(WHO)
        state = ",".join(f"{'k' * 100}{number}={'v' * 100}" for number in range(10))
        await method(b"", metadata=[*as_user(), ("traceparent", PARENT), ("tracestate", state)])
    assert (traced.trace_id, traced.state) == (TRACE, {})
