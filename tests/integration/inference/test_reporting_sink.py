"""What Reporting answers decides whether a batch of records is sent again or is cut in halves."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from inferplane.reporting.v1.prediction_pb2 import PredictionRecord
from inferplane.reporting.v1.reporting_service_pb2_grpc import ReportingServiceStub
from inferplane.server.inference.records.delivery import RefusedError, ReportingSink
from tests.support.fake_services import Fault, fail

SERVICE = "inferplane.reporting.v1.ReportingService"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@asynccontextmanager
async def sink_to(fault: Fault, largest: int = 4 << 20) -> AsyncIterator[ReportingSink]:
    """A sink whose every batch is answered with `fault` by a server that takes messages of up to `largest` bytes."""

    async def answer(_request: Any, context: Any) -> bytes:
        return await fail(context, fault)

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", largest)])
    handlers: dict[str, Any] = {"IngestPredictions": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield ReportingSink(ReportingServiceStub(channel), lambda: None)
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(EXHAUSTED, "OVERLOADED", retry_after=1.0),
        Fault(EXHAUSTED),
        Fault(grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"),
        Fault(grpc.StatusCode.INTERNAL, "INTERNAL"),
        Fault(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"),
    ],
    ids=lambda fault: f"{fault.code.name} {fault.reason}",
)
async def test_what_may_pass_later_is_no_refusal(fault: Fault) -> None:
    async with sink_to(fault) as sink:
        with pytest.raises(grpc.aio.AioRpcError):
            await sink.store([PredictionRecord()])


@pytest.mark.parametrize(
    "fault",
    [Fault(EXHAUSTED, "MESSAGE_TOO_LARGE"), Fault(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")],
    ids=lambda fault: str(fault.reason),
)
async def test_what_never_passes_is_a_refusal(fault: Fault) -> None:
    async with sink_to(fault) as sink:
        with pytest.raises(RefusedError):
            await sink.store([PredictionRecord()])


async def test_a_message_that_grpc_itself_does_not_take_is_a_refusal() -> None:
    async with sink_to(Fault(grpc.StatusCode.INTERNAL), largest=100) as sink:
        with pytest.raises(RefusedError):
            await sink.store([PredictionRecord(client_request_id="x" * 200)])
