"""Unary calls whose answer stays with the other side until it is its turn to be read."""

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import grpc

__all__ = ["UnaryInTurn", "unary_in_turn"]

Metadata: TypeAlias = tuple[tuple[str, str], ...]
UnaryInTurn: TypeAlias = Callable[
    [bytes, Metadata, float, AbstractAsyncContextManager[None]], Coroutine[Any, Any, bytes]
]
"""Body, metadata, timeout in seconds, and the turn, to the answer; raises AioRpcError, and what the turn raises."""


def unary_in_turn(channel: grpc.aio.Channel, path: str) -> UnaryInTurn:
    """Calls of the method at `path`, such as `/package.Service/Method`. An answer is read within its turn, which is
    entered when the answer has begun to come."""
    # What is asked for piece by piece comes no faster: until then it stays where it is, but for 64 KiB.
    method: Any = channel.unary_stream(path)

    async def call(body: bytes, metadata: Metadata, timeout: float, turn: AbstractAsyncContextManager[None]) -> bytes:
        underway = method(body, metadata=metadata, timeout=timeout)
        try:
            await underway.initial_metadata()
            async with turn:
                answer = await underway.read()
            # Raises where the status that follows is no OK.
            await underway.read()
        except BaseException:
            underway.cancel()
            raise
        return b"" if answer is grpc.aio.EOF else bytes(answer)

    return call
