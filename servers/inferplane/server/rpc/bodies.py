"""Reads the bodies of unary requests: after the caller is known, in turn between callers, within a budget and a time.

gRPC keeps at most 64 KiB of a body that nobody has asked for (`channel_arguments` in server.py), so what a body may
take in memory begins here. How large one is shows only when it is whole; nearly all are small and there already. Those
that take longer are let come, as long as the process does not grow by more than the budget meanwhile.
"""

import asyncio
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import FairGate
from inferplane.server.rpc.call import Call

__all__ = ["BodyReader"]

_FULL = "too many requests arrive at once"
QUICK = 64
QUICK_EACH = 32
"""Bodies that are read at once, of all callers and of one."""
PUBLIC_QUICK = 16
PUBLIC_QUICK_EACH = 8
"""The same for public methods: fewer, because until they are slow nobody knows what they hold."""
SLOW_AFTER = 0.1
"""Seconds after which a body counts among the slow ones instead."""
WAITING = 4000
WAITING_EACH = 1000
SWEEP_INTERVAL = 0.05
SPARED = 20
"""Looks for which streams are spared after bodies were ended: most streams that wait hold nothing, a slow body does."""
LOWEST_OF = 10.0
"""Seconds of which the least memory is what the process takes without strangers' slow bodies. What was let go a moment
ago may not be free yet: taken for the process's own, it would let the next bodies have as much again, and so on."""
PUBLIC_TIME_LIMIT = 5.0
PUBLIC_BUDGET = 64 << 20
MOST_PUBLIC = 256
"""Slow bodies of public methods; beyond them the oldest goes."""


class BodyReader:
    """Reads bodies. What arrives slowly may make the process grow by `budget` bytes, of public methods by 64 MiB, and
    must be whole after `time_limit` seconds, of public methods after 5."""

    def __init__(self, budget: int, time_limit: float) -> None:
        self._gate = FairGate(_FULL, capacity=QUICK, each=QUICK_EACH, waiting=WAITING, waiting_each=WAITING_EACH)
        self._public_gate = FairGate(
            _FULL, capacity=PUBLIC_QUICK, each=PUBLIC_QUICK_EACH, waiting=WAITING, waiting_each=WAITING_EACH
        )
        self._time_limit = time_limit
        self._quick: dict[Call, float] = {}
        self._slow: dict[Call, float] = {}
        self._streams: dict[Call, None] = {}
        self._levels: dict[Call, int] = {}
        self._spared = 0
        self._recent: deque[int] = deque(maxlen=round(LOWEST_OF / SWEEP_INTERVAL))
        self._budget = budget
        self.held_elsewhere: Callable[[], int] = lambda: 0
        """Bytes that this process holds for something else, and will let go: they are not weighed."""

    async def read(self, call: Call) -> bytes:
        """The body. Raises MALFORMED_REQUEST where there is none, and OVERLOADED.

        One that is too slow ends its call, with OVERLOADED or STREAM_STALLED.
        """
        gate, caller = self._gate_of(call)
        if not gate.try_enter(caller, 1):
            await gate.enter(caller, 1)
        self._quick[call] = time.monotonic()
        try:
            body = await call.context.read()
        finally:
            if call in self._quick:
                del self._quick[call]
                gate.leave(caller, 1)
            else:
                del self._slow[call]
            self._levels.pop(call, None)
        if body is grpc.aio.EOF:
            raise InferplaneError(ErrorReason.ERROR_REASON_MALFORMED_REQUEST, detail="there is none")
        return body  # type: ignore[no-any-return] # bytes, where there is no deserialiser

    def _gate_of(self, call: Call) -> tuple[FairGate, str]:
        """Where the call waits for its turn, and as whom."""
        if call.method.access.public:
            return self._public_gate, call.peer
        return self._gate, call.principal.subject

    async def message(self, call: Call) -> Any:
        """The next message of a stream, or EOF. While it does not come it counts among what arrives slowly: nobody but
        gRPC knows how much of it is there. Streams have limits of their own for the time."""
        self._streams[call] = None
        try:
            return await call.context.read()
        finally:
            self._streams.pop(call, None)
            self._levels.pop(call, None)

    async def messages(self, call: Call) -> AsyncIterator[bytes]:
        """All messages of a stream."""
        while (message := await self.message(call)) is not grpc.aio.EOF:
            yield message

    async def sweep(self) -> None:
        """Look after the slow ones, until cancelled."""
        # Opened once: where no descriptor is left, slow bodies are looked after all the same.
        statm = os.open("/proc/self/statm", os.O_RDONLY)
        try:
            while True:
                await asyncio.sleep(SWEEP_INTERVAL)
                self._look(time.monotonic(), statm)
        finally:
            os.close(statm)

    def _look(self, now: float, statm: int) -> None:
        # In the order of their beginnings.
        for call in [call for call, since in self._quick.items() if now - since > SLOW_AFTER]:
            self._demote(call)
        for call, since in list(self._slow.items()):
            if now - since > (PUBLIC_TIME_LIMIT if call.method.access.public else self._time_limit):
                call.end(InferplaneError(ErrorReason.ERROR_REASON_STREAM_STALLED))
        self._recent.append(_resident(statm))
        if self._slow or self._streams:
            self._shed(self._recent[-1])

    def _demote(self, call: Call) -> None:
        since = self._quick.pop(call)
        gate, caller = self._gate_of(call)
        gate.leave(caller, 1)
        self._slow[call] = since

    def _shed(self, resident: int) -> None:
        """End what arrives slowly where it is too much, or where the process, of `resident` bytes now, has grown by too
        much since it began."""
        slow = [call for call in self._slow if call.method.access.public]
        for call in slow[: max(0, len(slow) - MOST_PUBLIC)]:
            call.end(InferplaneError.overloaded("too many requests arrive slowly"))
        arriving = (*self._slow, *self._streams)
        lowest = min(self._recent, default=resident)
        first = {call: lowest if call.method.access.public else resident for call in arriving}
        self._levels = {call: min(self._levels.get(call, level), resident) for call, level in first.items()}
        grown = {call: resident - level - self.held_elsewhere() for call, level in self._levels.items()}
        public = [call for call in arriving if call.method.access.public and grown[call] > PUBLIC_BUDGET]
        known = [call for call in arriving if not call.method.access.public and grown[call] > self._budget]
        bodies = [call for call in known if call in self._slow]
        self._spared = max(0, self._spared - 1)
        if public:
            self._end(public, public, resident)
        elif bodies:
            self._end(_half_of_the_heaviest(bodies), self._slow, resident)
            self._spared = SPARED
        elif known and not self._spared:
            self._end(_half_of_the_heaviest(known), self._streams, resident)

    def _end(self, calls: Iterable[Call], kind: Iterable[Call], resident: int) -> None:
        for call in calls:
            call.end(InferplaneError.overloaded("requests that arrive slowly hold too much"))
        # What they held is used again before the process grows; `kind` is weighed anew.
        self._levels.update(dict.fromkeys(kind, resident))


def _half_of_the_heaviest(calls: list[Call]) -> list[Call]:
    """The newest half of what the caller has who has most of them."""
    heaviest, count = Counter(call.principal.subject for call in calls).most_common(1)[0]
    return [call for call in calls if call.principal.subject == heaviest][count // 2 :]


def _resident(statm: int) -> int:
    """Bytes of this process in memory (proc_pid_statm(5))."""
    return int(os.pread(statm, 200, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")
