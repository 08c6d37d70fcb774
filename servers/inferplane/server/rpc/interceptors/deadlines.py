"""Caps unary calls in time, and asks streams for progress instead."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.rpc.call import Call

__all__ = ["DeadlinePolicy"]

UNARY_CAPS: Mapping[str, float] = {
    # Inspects the whole file in a process of its own.
    "/inferplane.artifact.v1.ModelRegistryService/CreateModelVersion": 300.0,
}

RATED = frozenset({"/inferplane.artifact.v1.ArtifactService/WriteArtifact"})
"""Request streams that must move a minimum of bytes; in others a small message is progress enough."""


@dataclass(frozen=True, slots=True)
class DeadlinePolicy:
    """`unary` is the cap where none is named, in seconds; `idle` how long a request stream may say nothing;
    `minimum_rate` in bytes a second, averaged over `idle` seconds of waiting."""

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
        rated = call.method.path in RATED
        # Only the time spent waiting for the client counts: it is not to blame for ours.
        waited, moved = 0.0, 0
        iterator = aiter(messages)
        while True:
            began = time.monotonic()
            try:
                message = await asyncio.wait_for(anext(iterator), self.idle)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise InferplaneError(ErrorReason.ERROR_REASON_STREAM_STALLED) from error
            waited += time.monotonic() - began
            moved += len(message)
            if waited >= self.idle:
                if rated and moved < self.minimum_rate * waited:
                    raise InferplaneError(ErrorReason.ERROR_REASON_STREAM_STALLED)
                waited, moved = 0.0, 0
            yield message
