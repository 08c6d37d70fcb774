"""Reads the bodies of unary requests: after the caller is known, within a budget, and for a limited time.

gRPC keeps at most 64 KiB of a body that nobody has asked for (`channel_arguments` in server.py), so what a body may
take in memory begins here. How large it is shows only when it is whole. So the bodies that come at once, nearly all,
share a few places, in turn between callers; of those that do not, there may be as many as the budget holds of the
largest message.
"""

import asyncio
import time
from collections import Counter
from typing import NamedTuple

import grpc

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import FairGate, GateFullError
from inferplane.server.rpc.call import Call

__all__ = ["BodyReader"]

QUICK = 64
QUICK_EACH = 32
"""Bodies that are read at once, of all callers and of one. Many, as nearly all are small and there already; those that
are not stop counting here, and being many, after SLOW_AFTER."""
QUICK_ANONYMOUS = 4
QUICK_ANONYMOUS_EACH = 2
"""The same for callers of public methods, who are told apart by their addresses alone."""
SLOW_AFTER = 0.1
"""Seconds after which a body counts as slow."""
WAITING = 4000
WAITING_EACH = 1000
LEAST_SLOW = 4
SWEEP_INTERVAL = 0.05


class _Reading(NamedTuple):
    since: float
    gate: FairGate
    caller: str


class BodyReader:
    """Reads bodies of at most `max_message_size` bytes. Those that are slow hold at most `budget` bytes together, half
    of that for one caller, and each must be whole after `time_limit` seconds."""

    def __init__(self, max_message_size: int, budget: int, time_limit: float) -> None:
        self._gate = FairGate(capacity=QUICK, each=QUICK_EACH, waiting=WAITING, waiting_each=WAITING_EACH)
        self._public_gate = FairGate(
            capacity=QUICK_ANONYMOUS, each=QUICK_ANONYMOUS_EACH, waiting=WAITING, waiting_each=WAITING_EACH
        )
        self._most_slow = max(LEAST_SLOW, budget // max_message_size)
        self._time_limit = time_limit
        self._quick: dict[Call, _Reading] = {}
        self._slow: dict[Call, _Reading] = {}
        self._slow_of: Counter[str] = Counter()

    async def read(self, call: Call) -> bytes:
        """The body. Raises MALFORMED_REQUEST where there is none, and OVERLOADED.

        One that is too slow ends its call, with OVERLOADED or STREAM_STALLED.
        """
        if call.method.access.public:
            gate, caller = self._public_gate, call.context.peer().rpartition(":")[0]
        else:
            gate, caller = self._gate, call.principal.subject
        if not gate.try_enter(caller, 1):
            await self._wait(gate, caller)
        self._quick[call] = _Reading(time.monotonic(), gate, caller)
        try:
            body = await call.context.read()
        finally:
            self._done(call)
        if body is grpc.aio.EOF:
            raise InferplaneError(ErrorReason.ERROR_REASON_MALFORMED_REQUEST, detail="there is none")
        return body  # type: ignore[no-any-return] # bytes, where there is no deserialiser

    async def sweep(self) -> None:
        """Look after the slow ones, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            now = time.monotonic()
            # In the order of their beginnings.
            late = [call for call, reading in self._quick.items() if now - reading.since > SLOW_AFTER]
            for call in late:
                self._demote(call)
            for call, reading in self._slow.items():
                if now - reading.since > self._time_limit:
                    call.end(InferplaneError(ErrorReason.ERROR_REASON_STREAM_STALLED))

    async def _wait(self, gate: FairGate, caller: str) -> None:
        try:
            await gate.enter(caller, 1)
        except GateFullError:
            raise InferplaneError.overloaded("too many requests arrive at once") from None

    def _demote(self, call: Call) -> None:
        reading = self._quick.pop(call)
        reading.gate.leave(reading.caller, 1)
        if len(self._slow) >= self._most_slow or self._slow_of[reading.caller] >= self._most_slow // 2:
            call.end(InferplaneError.overloaded("too many requests arrive slowly"))
        self._slow[call] = reading
        self._slow_of[reading.caller] += 1

    def _done(self, call: Call) -> None:
        if (reading := self._quick.pop(call, None)) is not None:
            reading.gate.leave(reading.caller, 1)
        elif (reading := self._slow.pop(call, None)) is not None:
            self._slow_of[reading.caller] -= 1
            if not self._slow_of[reading.caller]:
                del self._slow_of[reading.caller]
