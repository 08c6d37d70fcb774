"""The calls that run now: so that a stop can wait for them, and so that streams do not outlive what they rest on."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.rpc.call import Call

__all__ = ["RunningCalls"]

log = structlog.get_logger()

SWEEP_INTERVAL = 0.5
AT_ONCE = 50
"""Streams that are looked at before others get their turn."""
MOST_STREAMS = 100
MOST_STREAMS_IN_ALL = 5000
"""Streams of one caller and of all, in one process."""
MOST_PUBLIC_STREAMS_IN_ALL = 1000
"""The same of all who need not say who they are; they have places of their own."""


class RunningCalls:
    """Tracks calls. A stream ends after `max_stream_age` seconds, and when its credentials or grants are gone."""

    def __init__(self, max_stream_age: float) -> None:
        self._max_stream_age = max_stream_age
        self._calls: set[Call] = set()
        """Whose handlers run."""
        self.open: dict[Call, None] = {}
        """Of which gRPC may hold something: from their headers until it has sent the last answer, or let them go. The
        oldest is the first."""
        self._draining = False
        self._streams_of: Counter[str] = Counter()
        self._claims: dict[Call, str] = {}
        self._public_claims: dict[Call, str] = {}

    @contextmanager
    def tracking(self, call: Call) -> Iterator[None]:
        """Count `call` as running; while draining a new stream is not begun."""
        self.add(call)
        try:
            yield
        finally:
            self.discard(call)

    def add(self, call: Call) -> None:
        """Count `call` as running."""
        self._calls.add(call)
        self.open[call] = None
        call.afterwards(lambda: self.open.pop(call, None))
        if self._draining and call.method.streams:
            call.end(_shutting_down())

    def claim_stream(self, call: Call) -> None:
        """Count a stream against its caller, or where nobody is known its address; raises OVERLOADED."""
        if call.method.access.public:
            caller, claims, most = call.peer, self._public_claims, MOST_PUBLIC_STREAMS_IN_ALL
        else:
            caller, claims, most = call.principal.subject, self._claims, MOST_STREAMS_IN_ALL
        if self._streams_of[caller] >= MOST_STREAMS or len(claims) >= most:
            raise InferplaneError.overloaded("too many streams are open")
        self._streams_of[caller] += 1
        claims[call] = caller
        # Until then it takes what a stream takes.
        call.afterwards(lambda: self._give_back(call))

    def discard(self, call: Call) -> None:
        """The call is through."""
        self._calls.discard(call)
        call.leave()

    def _give_back(self, call: Call) -> None:
        if (caller := self._claims.pop(call, None) or self._public_claims.pop(call, None)) is not None:
            self._streams_of[caller] -= 1
            if not self._streams_of[caller]:
                del self._streams_of[caller]

    async def sweep(self) -> None:
        """End the streams that must not go on, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            oldest = time.monotonic() - self._max_stream_age
            for number, call in enumerate([call for call in self._calls if call.method.streams]):
                if number % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)
                if call.started < oldest:
                    call.end(InferplaneError(ErrorReason.ERROR_REASON_STREAM_EXPIRED, retry_after=0.1))
                elif (lost := _lost(call)) is not None:
                    call.end(lost)

    async def end_streams(self, last_words: float) -> None:
        """Give streams `last_words` seconds to end by themselves, then end them with SHUTTING_DOWN."""
        self._draining = True
        if tasks := self._tasks(streams=True):
            await asyncio.wait(tasks, timeout=last_words)
        for call in list(self._calls):
            if call.method.streams:
                call.end(_shutting_down())

    async def finished(self) -> None:
        """Wait until no handler runs any more."""
        while tasks := self._tasks():
            await asyncio.wait(tasks)

    def _tasks(self, *, streams: bool | None = None) -> list[asyncio.Task[Any]]:
        return [c.task for c in self._calls if c.task is not None and streams in (None, c.method.streams)]


def _shutting_down() -> InferplaneError:
    return InferplaneError(ErrorReason.ERROR_REASON_SHUTTING_DOWN, retry_after=0.1)


def _lost(call: Call) -> InferplaneError | None:
    """Why the stream must end, if it must."""
    try:
        for check in call.standing:
            check()
    except InferplaneError as error:
        return error
    return None
