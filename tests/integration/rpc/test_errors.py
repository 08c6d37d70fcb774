"""What leaves the server when something goes wrong, and when it stops."""

import asyncio
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import grpc
import hpack
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, generate_latest

from inferplane.auth.v1 import auth_service_pb2 as pb
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.rpc.errors import CATALOG
from inferplane.server.rpc.methods import MissingAccessRuleError
from tests.support.frames import PREFACE, SETTINGS, frame
from tests.support.mesh import error_info, failure, reason, until
from tests.support.paths import WHO
from tests.support.stand import Stand, running, who_am_i

WATCH = "/inferplane.artifact.v1.ArtifactService/ReadArtifact"


def stand(behaviour: Any, *, unary: float = 30, grace: float = 5) -> AbstractAsyncContextManager[Stand]:
    return running(who_am_i(behaviour), unary=unary, drain_grace=grace, max_message_size=1 << 20)


async def answer(_request: Any, _context: Any) -> Any:
    return pb.WhoAmIResponse()


def test_the_catalog_covers_every_reason() -> None:
    assert set(CATALOG) == set(ErrorReason.values()) - {ErrorReason.ERROR_REASON_UNSPECIFIED}


@pytest.mark.parametrize(
    "raised", [RuntimeError("secret text"), SystemExit(3), KeyboardInterrupt(), KeyError("secret text")]
)
async def test_an_unknown_exception_leaves_as_a_fixed_text_with_the_request_id(raised: BaseException) -> None:
    async def fail(_request: Any, _context: Any) -> Any:
        raise raised

    async with stand(fail) as server:
        error = await failure(server.call())
        assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
        assert error_info(error).metadata["request_id"] == dict(error.trailing_metadata())["inferplane-request-id"]
        assert "secret" not in str(error)
        assert (await failure(server.call())).code() == grpc.StatusCode.INTERNAL


async def test_the_longest_error_arrives_whole() -> None:
    """gRPC's clients take 8 KiB of what comes with a status. No other text is as long on the wire."""
    text = "\N{CRAB}" * 1000

    async def fail(_request: Any, _context: Any) -> Any:
        raise InferplaneError(
            ErrorReason.ERROR_REASON_INVALID_FIELD,
            violations=((text, text),) * 20,
            retry_after=1,
            detail=text,
            dependency=text,
            deployment=text,
        )

    async with stand(fail) as server:
        assert await reason(server.call()) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_malformed_bytes_are_an_invalid_argument() -> None:
    async with stand(answer) as server:
        assert await reason(server.call(b"\xff\xff\xff")) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


@pytest.mark.parametrize("path", ["/inferplane.auth.v1.AuthService/Nothing", "/no.such.Service/Nothing", "/x"])
async def test_an_unknown_method_is_unimplemented_with_error_info(path: str) -> None:
    async with stand(answer) as server:
        assert await reason(server.call(path=path)) == (grpc.StatusCode.UNIMPLEMENTED, "UNKNOWN_METHOD")


async def test_a_path_that_is_no_text_harms_nobody() -> None:
    """Some versions of gRPC's library end the whole server."""
    encoder = hpack.Encoder()
    path = b"\x04\x02/\xff"
    begin = encoder.encode([(":method", "POST"), (":scheme", "http"), (":authority", "x")])
    block = begin + path + encoder.encode([("content-type", "application/grpc"), ("te", "trailers")])
    async with stand(answer) as server:
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        # Headers, and a ping whose answer comes when they have been read.
        writer.write(PREFACE + SETTINGS + frame(1, block, stream=1, flags=5) + frame(6, bytes(8)))
        answered = b""
        while frame(6, bytes(8), flags=1) not in answered:
            answered += await reader.readexactly(1)
        for _ in range(3):
            await server.call()
        writer.close()


async def test_a_call_ends_at_its_cap_even_if_the_client_set_no_deadline() -> None:
    async def hang(_request: Any, _context: Any) -> Any:
        await asyncio.Event().wait()

    async with stand(hang, unary=0.05) as server:
        assert await reason(server.call()) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


async def test_a_method_without_a_rule_stops_the_server_from_starting() -> None:
    handler = grpc.unary_unary_rpc_method_handler(answer, Empty.FromString, Empty.SerializeToString)
    async with stand(answer) as server:
        with pytest.raises(MissingAccessRuleError):
            server.server.add_handlers("no.such.Service", {"Do": handler}, ())


async def test_accepted_unary_calls_finish_while_the_server_stops() -> None:
    arrived, release = asyncio.Event(), asyncio.Event()

    async def wait(_request: Any, _context: Any) -> Any:
        arrived.set()
        await release.wait()
        return pb.WhoAmIResponse()

    async with stand(wait) as server:
        call = asyncio.ensure_future(server.call())
        await arrived.wait()
        stopping = asyncio.create_task(server.server.stop())
        await asyncio.sleep(0)
        assert server.server.health.serving("") is False
        release.set()
        await call
        await stopping


async def test_a_stopping_server_tells_its_watchers_and_ends_streams_with_unavailable() -> None:
    async with stand(answer) as server:
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        watch = aiter(stub.Watch(health_pb2.HealthCheckRequest()))
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.server.stop())
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await reason(anext(watch)) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        await stopping


async def test_no_handler_runs_any_more_when_stop_returns() -> None:
    arrived = asyncio.Event()
    ended = False

    async def stubborn(_request: Any, _context: Any) -> Any:
        nonlocal ended
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            ended = True

    async with stand(stubborn, grace=0.05) as server:
        call = asyncio.ensure_future(server.call())
        await arrived.wait()
        await server.server.stop()
        assert ended
        await asyncio.gather(call, return_exceptions=True)


def is_in(text: str, registry: CollectorRegistry) -> bool:
    return text in generate_latest(registry).decode()


async def test_refused_and_failed_calls_are_counted_by_their_status() -> None:
    async with stand(answer) as server:
        await server.call()
        method: Any = server.channel.unary_unary(WHO)
        await failure(method(b""))
        # A call is counted once it has ended, which its caller learns first.
        for code in ("OK", "UNAUTHENTICATED"):
            counted = f'inferplane_rpc_calls_total{{code="{code}",method="WhoAmI"'
            await until(partial(is_in, counted, server.registry))


async def test_health_lists_and_checks_each_service() -> None:
    async with stand(answer) as server:
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        known = await stub.Check(health_pb2.HealthCheckRequest(service="inferplane.auth.v1.AuthService"))
        assert known.status == health_pb2.HealthCheckResponse.SERVING
        error = await failure(stub.Check(health_pb2.HealthCheckRequest(service="unheard.of")))
        assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_a_message_or_metadata_over_the_limit_is_refused_and_the_server_goes_on() -> None:
    async with stand(answer) as server:
        assert (await failure(server.call(bytes(2 << 20)))).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        method: Any = server.channel.unary_unary(WHO)
        for padding in ([("x-padding", "a" * (17 << 10))], [("x", "")] * 600):
            too_much = [("authorization", "Bearer alice"), *padding]
            assert (await failure(method(b"", metadata=too_much))).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await method(b"", metadata=[("authorization", "Bearer alice"), ("x-padding", "a" * (12 << 10))])
        await server.call()


async def test_a_call_that_is_refused_before_its_handler_leaves_no_line_of_grpcs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such a line has a traceback, and strangers could fill the log with them."""
    async with running(who_am_i(answer)) as server:
        method: Any = server.channel.unary_unary(WHO)
        assert (await failure(method(b""))).code() is grpc.StatusCode.UNAUTHENTICATED
        unknown: Any = server.channel.unary_unary("/nobody.Knows/This")
        assert (await failure(unknown(b""))).code() is grpc.StatusCode.UNIMPLEMENTED
    assert [record.name for record in caplog.records if record.name.startswith("grpc")] == []
