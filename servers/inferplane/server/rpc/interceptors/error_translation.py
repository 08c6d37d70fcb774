"""Turns whatever is raised into a status with ErrorInfo, and never lets a library's text out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from grpc_status import rpc_status

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.rpc.call import Call
from inferplane.server.rpc.errors import reason_name, status_code, to_status
from inferplane.server.rpc.interceptors.request_identity import REQUEST_ID_KEY

__all__ = ["error_translation"]

log = structlog.get_logger()

STATUS_WAIT = 1.0
"""Seconds for which a handler waits until the status of a stream is sent. Where the client does not read what comes
before it, it goes on without."""


async def _abort(call: Call, error: InferplaneError) -> None:
    """End the call with `error`."""
    call.code = status_code(error.reason)
    call.reason = reason_name(error.reason)
    status = rpc_status.to_status(to_status(error, call.request_id))
    trailers = (*status.trailing_metadata, (REQUEST_ID_KEY, call.request_id))
    if not call.method.streams:
        await _send(call, status.code, status.details, trailers)
        return
    await call.opened(STATUS_WAIT)
    call.farewell = asyncio.ensure_future(_send(call, status.code, status.details, trailers))
    await asyncio.wait([call.farewell], timeout=STATUS_WAIT)


async def _send(call: Call, code: grpc.StatusCode, details: str, trailers: Any) -> None:
    try:
        await call.context.abort(code, details, trailers)
    except grpc.aio.AbortError as aborted:
        # gRPC's call keeps it, and raises it again when the handler is through. What it knows of where it came from
        # leads back to the call: they would keep what has arrived of the request, up to 32 MiB, until the next garbage
        # collection.
        aborted.__traceback__ = aborted.__context__ = None
    except grpc.aio.BaseError:
        # Nobody is there any more, or so much waits for them that nothing can be told.
        log.debug("status_not_sent", method=call.method.path, request_id=call.request_id, exc_info=True)


def _interpret(call: Call, error: BaseException) -> InferplaneError:
    if isinstance(error, InferplaneError):
        if status_code(error.reason) is grpc.StatusCode.INTERNAL and not error.logged:
            log.error("internal_error", method=call.method.path, request_id=call.request_id, details=error.private)
        return error
    log.error("unhandled_exception", method=call.method.path, request_id=call.request_id, exc_info=error)
    return InferplaneError(ErrorReason.ERROR_REASON_INTERNAL)


@asynccontextmanager
async def error_translation(call: Call) -> AsyncIterator[None]:
    """Cover exceptions, SystemExit and KeyboardInterrupt in a handler (they would end the process), and calls that
    are ended from outside. The call then has its status, and what its handler answers reaches nobody. Passes on the
    leaving of the client, and gRPC's own errors where they are not how a stream learns of that."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError:
        # gRPC's own: the client left while an answer was written to its stream. Nobody is there to be told.
        call.code = grpc.StatusCode.CANCELLED
        if not call.method.streams:
            raise
    except asyncio.CancelledError:
        if call.ending is None:
            call.code = grpc.StatusCode.CANCELLED
            raise
        await _abort(call, call.ending)
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - nothing may leave as it is
        await _abort(call, _interpret(call, error))
