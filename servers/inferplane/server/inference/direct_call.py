"""Unary calls from bytes to bytes at little cost (decision 0032).

grpc.aio makes a task, a call object and several callbacks around each call, for what nobody here asks of it. Half of
that is left out by using the object below it. That object is not public: where a release of gRPC has another, calls go
the usual way.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import grpc

__all__ = ["Unary", "direct_unary"]

Unary: TypeAlias = Callable[[bytes, tuple[tuple[str, str], ...], float], Coroutine[Any, Any, bytes]]
"""Body, metadata and timeout in seconds to the answer; raises AioRpcError, as calls of grpc.aio do."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def direct_unary(channel: grpc.aio.Channel, path: str) -> Unary:
    """Calls of the method at `path`, such as `/package.Service/Method`."""
    below = getattr(channel, "_channel", None)
    return _direct(below, path.encode()) if _is_known(below) else usual_unary(channel, path)


def _is_known(channel: Any) -> bool:
    """Whether it takes what `_direct` gives it, and has what that asks for: tried with a call that is never sent."""
    try:
        trial = channel.call(b"/", time.time(), None, None)
        trial.unary_unary(b"", (), None).close()
        return all(map(callable, (trial.is_ok, trial.status, trial.cancel, trial.initial_metadata)))
    except (AttributeError, TypeError):
        return False


def usual_unary(channel: grpc.aio.Channel, path: str) -> Unary:
    """The same by public means."""
    method: Any = channel.unary_unary(path)

    async def call(body: bytes, metadata: tuple[tuple[str, str], ...], timeout: float) -> bytes:
        answer: bytes = await method(body, metadata=metadata, timeout=timeout)
        return answer

    return call


def _direct(channel: Any, path: bytes) -> Unary:
    async def call(body: bytes, metadata: tuple[tuple[str, str], ...], timeout: float) -> bytes:
        underway = channel.call(path, time.time() + timeout, None, None)
        try:
            answer: bytes = await underway.unary_unary(body, metadata, None)
        except asyncio.CancelledError:
            underway.cancel("nobody waits for the answer any more")
            raise
        if underway.is_ok():
            return answer
        raise await _error(underway)

    return call


async def _error(call: Any) -> grpc.aio.AioRpcError:
    status = await call.status()
    return grpc.aio.AioRpcError(
        _CODES.get(status.code(), grpc.StatusCode.UNKNOWN),
        grpc.aio.Metadata.from_tuple(await call.initial_metadata() or ()),
        grpc.aio.Metadata.from_tuple(status.trailing_metadata() or ()),
        details=status.details(),
        debug_error_string=status.debug_error_string(),
    )
