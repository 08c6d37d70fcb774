"""Gives each call a request id, returned as metadata, and its place in the trace."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inferplane.server.rpc.call import Call

__all__ = ["REQUEST_ID_KEY", "request_identity"]

REQUEST_ID_KEY = "inferplane-request-id"

MAX_TRACE_HEADER = 512
"""Characters; a longer header of the trace is not looked at. W3C asks for as many."""

_tracer = trace.get_tracer("inferplane")
# The trace alone, not all that OpenTelemetry would take by default: whoever calls is not known yet, and 8 KB of baggage
# can take it 60 ms.
_propagator = TraceContextTextMapPropagator()
_trace_headers = frozenset(_propagator.fields)
# It would warn of each odd entry.
logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)


@asynccontextmanager
async def request_identity(call: Call) -> AsyncIterator[None]:
    """Bind the request id to the log, answer it as trailing metadata, and open the server span (W3C context)."""
    call.context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
    carrier = {
        key: value
        for key, value in call.metadata
        if key in _trace_headers and isinstance(value, str) and len(value) <= MAX_TRACE_HEADER
    }
    with (
        structlog.contextvars.bound_contextvars(request_id=call.request_id),
        _tracer.start_as_current_span(
            call.method.path.removeprefix("/"),
            context=_propagator.extract(carrier),
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
