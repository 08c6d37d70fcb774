"""Caps unary calls in time, and asks streams for progress instead."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.rpc.call import Call

__all__ = ["DeadlinePolicy"]

T = TypeVar("T")

UNARY_CAPS: Mapping[str, float] = {
    # Inspects the whole file in a process of its own.
    "/inferplane.artifact.v1.ModelRegistryService/CreateModelVersion": 300.0,
}

RATED = frozenset({"/inferplane.artifact.v1.ArtifactService/WriteArtifact"})
"""Request streams that must move a minimum of bytes; in others a small message is progress enough."""


@dataclass(frozen=True, slots=True)
class DeadlinePolicy:
    """`unary` is the cap where none is named, in seconds; `idle` how long a request stream may say nothing,
    and the reader of an answer may take nothing; `minimum_rate` in bytes a second, averaged over `idle` seconds of
    waiting."""

    unary: float
    idle: float
    minimum_rate: float
    caps: Mapping[str, float] = field(default_factory=lambda: UNARY_CAPS)

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """End a unary call at its cap or its client's deadline. Streams have no total cap."""
        if call.method.streams:
            yield
            return
        cap = self.caps.get(call.method.path, self.unary)
        timeout = asyncio.timeout(cap)
        try:
            async with timeout:
                yield
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise InferplaneError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED) from error

    async def pace(self, call: Call, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass on `messages`; STREAM_STALLED where the next one is late or a window moved too few bytes."""
        progress = _Progress(self.idle, self.minimum_rate if call.method.path in RATED else 0)
        iterator = aiter(messages)
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.idle):
                    message = await anext(iterator)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise _stalled() from error
            progress.add(time.monotonic() - began, len(message))
            yield message

    async def pace_answers(
        self, call: Call, answers: AsyncIterator[T], size: Callable[[T], int]
    ) -> AsyncGenerator[T, None]:
        """Pass on `answers`, each of `size` bytes; STREAM_STALLED where the client takes one too late, or too few bytes
        in a window."""
        progress = _Progress(self.idle, self.minimum_rate)
        loop = asyncio.get_running_loop()
        async for answer in answers:
            began = time.monotonic()
            # The handler waits in gRPC's write meanwhile, out of which only the end of its call leads.
            late = loop.call_later(self.idle, call.end, _stalled())
            try:
                yield answer
            finally:
                late.cancel()
            progress.add(time.monotonic() - began, size(answer))


class _Progress:
    """Looks at windows of `window` seconds of waiting. Only the time spent waiting for the client counts: it is not to
    blame for ours."""

    def __init__(self, window: float, minimum_rate: float) -> None:
        self._window = window
        self._minimum_rate = minimum_rate
        self._waited = 0.0
        self._moved = 0

    def add(self, waited: float, moved: int) -> None:
        """Count `moved` bytes for which the client was waited for; raises STREAM_STALLED at the end of a window that
        moved too few."""
        self._waited += waited
        self._moved += moved
        if self._waited < self._window:
            return
        if self._moved < self._minimum_rate * self._waited:
            raise _stalled()
        self._waited, self._moved = 0.0, 0


def _stalled() -> InferplaneError:
    return InferplaneError(ErrorReason.ERROR_REASON_STREAM_STALLED)
