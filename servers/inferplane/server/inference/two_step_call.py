"""Unary calls in two steps: their answer has begun to come, and it is read. Until then it stays with the other side."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import grpc

__all__ = ["Begin", "Begun", "two_step_unary"]


class Begun:
    """A call whose answer has begun to come, or which has failed."""

    def __init__(self, call: Any) -> None:
        self._call = call

    @property
    def has_failed(self) -> bool:
        """Whether no answer will come; `read` says why."""
        return bool(self._call.done())

    async def read(self) -> bytes:
        """The answer; raises AioRpcError."""
        answer = await self._call.read()
        # Raises where the status that follows is no OK.
        await self._call.read()
        return b"" if answer is grpc.aio.EOF else bytes(answer)


Begin: TypeAlias = Callable[[bytes, tuple[tuple[str, str], ...], float], Coroutine[Any, Any, Begun]]
"""Body, metadata and timeout in seconds, to the call once it has begun to be answered. Raises AioRpcError where that
takes longer than the timeout."""

READABLE = 30.0
"""Seconds after its timeout for which an answer that has begun to come can be read."""


def two_step_unary(channel: grpc.aio.Channel, path: str) -> Begin:
    """Calls of the method at `path`, such as `/package.Service/Method`."""
    # Of what is asked for piece by piece, gRPC takes no more than 64 KiB unasked.
    method: Any = channel.unary_stream(path)

    async def begin(body: bytes, metadata: tuple[tuple[str, str], ...], timeout: float) -> Begun:
        call = method(body, metadata=metadata, timeout=timeout + READABLE)
        try:
            async with asyncio.timeout(timeout):
                await call.initial_metadata()
        except TimeoutError:
            call.cancel()
            raise _too_late() from None
        except BaseException:
            call.cancel()
            raise
        return Begun(call)

    return begin


def _too_late() -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, nothing, nothing, "Deadline Exceeded")
