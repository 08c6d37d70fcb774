"""Gives each call a request id, returned as metadata, and its place in the trace."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from inferplane.server.rpc.call import Call

__all__ = ["REQUEST_ID_KEY", "request_identity"]

REQUEST_ID_KEY = "inferplane-request-id"

_tracer = trace.get_tracer("inferplane")


@asynccontextmanager
async def request_identity(call: Call) -> AsyncIterator[None]:
    """Bind the request id to the log, answer it as trailing metadata, and open the server span (W3C context)."""
    call.context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
    carrier = {key: value for key, value in call.context.invocation_metadata() or () if isinstance(value, str)}
    with (
        structlog.contextvars.bound_contextvars(request_id=call.request_id),
        _tracer.start_as_current_span(
            call.method.path.removeprefix("/"),
            context=propagate.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "inferplane.request_id": call.request_id},
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
    ):
        try:
            yield
        finally:
            span.set_attribute("rpc.grpc.status_code", int(call.code.value[0]))
            if call.reason:
                span.set_status(Status(StatusCode.ERROR, call.reason))
