"""Reads the bodies of unary requests: after the caller is known, in turn between callers, within a budget and a time.

gRPC keeps at most 64 KiB of a body that nobody has asked for (`channel_arguments` in server.py), so what a body may
take in memory begins here. How large one is shows only when it is whole; nearly all are small and there already. Those
that take longer are let come, as long as the process does not grow by more than the budget meanwhile.
"""

import asyncio
import os
import time
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

import grpc

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import FairGate, GateFullError
from inferplane.server.rpc.call import Call

__all__ = ["BodyReader"]

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
LOWEST_OF = 10.0
"""Seconds of which the least memory is what the process takes without slow bodies. What was let go a moment ago may not
be free yet: taken for the process's own, it would let the next bodies have as much again, and so on."""
PUBLIC_TIME_LIMIT = 5.0
PUBLIC_BUDGET = 64 << 20
MOST_PUBLIC = 256
"""Slow bodies of public methods; beyond them the oldest goes."""


class _Reading(NamedTuple):
    since: float
    gate: FairGate
    caller: str
    public: bool


class BodyReader:
    """Reads bodies. What arrives slowly may make the process grow by `budget` bytes, of public methods by 64 MiB, and
    must be whole after `time_limit` seconds, of public methods after 5."""

    def __init__(self, budget: int, time_limit: float) -> None:
        self._gate = FairGate(capacity=QUICK, each=QUICK_EACH, waiting=WAITING, waiting_each=WAITING_EACH)
        self._public_gate = FairGate(
            capacity=PUBLIC_QUICK, each=PUBLIC_QUICK_EACH, waiting=WAITING, waiting_each=WAITING_EACH
        )
        self._budget = budget
        self._time_limit = time_limit
        self._quick: dict[Call, _Reading] = {}
        self._slow: dict[Call, _Reading] = {}
        self._level = 0
        self._resident = deque([_resident()], maxlen=round(LOWEST_OF / SWEEP_INTERVAL))

    async def read(self, call: Call) -> bytes:
        """The body. Raises MALFORMED_REQUEST where there is none, and OVERLOADED.

        One that is too slow ends its call, with OVERLOADED or STREAM_STALLED.
        """
        public = bool(call.method.access.public)
        gate, caller = (self._public_gate, call.peer) if public else (self._gate, call.principal.subject)
        if not gate.try_enter(caller, 1):
            await self._wait(gate, caller)
        self._quick[call] = _Reading(time.monotonic(), gate, caller, public)
        try:
            body = await call.context.read()
        finally:
            if self._quick.pop(call, None) is not None:
                gate.leave(caller, 1)
            else:
                self._slow.pop(call, None)
        if body is grpc.aio.EOF:
            raise InferplaneError(ErrorReason.ERROR_REASON_MALFORMED_REQUEST, detail="there is none")
        return body  # type: ignore[no-any-return] # bytes, where there is no deserialiser

    async def sweep(self) -> None:
        """Look after the slow ones, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL)
            now = time.monotonic()
            self._resident.append(_resident())
            # In the order of their beginnings.
            for call in [call for call, reading in self._quick.items() if now - reading.since > SLOW_AFTER]:
                self._demote(call)
            for call, reading in list(self._slow.items()):
                if now - reading.since > (PUBLIC_TIME_LIMIT if reading.public else self._time_limit):
                    call.end(InferplaneError(ErrorReason.ERROR_REASON_STREAM_STALLED))
            if self._slow:
                self._shed()

    async def _wait(self, gate: FairGate, caller: str) -> None:
        try:
            await gate.enter(caller, 1)
        except GateFullError:
            raise InferplaneError.overloaded("too many requests arrive at once") from None

    def _demote(self, call: Call) -> None:
        reading = self._quick.pop(call)
        reading.gate.leave(reading.caller, 1)
        if not self._slow:
            self._level = min(self._resident)
        self._slow[call] = reading

    def _shed(self) -> None:
        """End slow bodies where they are too many or the process has grown by too much since there were none."""
        public = [call for call, reading in self._slow.items() if reading.public]
        for call in public[: max(0, len(public) - MOST_PUBLIC)]:
            call.end(InferplaneError.overloaded("too many requests arrive slowly"))
        grown = self._resident[-1] - self._level
        if public and grown > PUBLIC_BUDGET:
            for call in public:
                call.end(InferplaneError.overloaded("requests that arrive slowly hold too much"))
        elif grown > self._budget:
            # Half of what its heaviest caller has, the newest, and again after a while if that was not enough.
            slow_of = Counter(reading.caller for reading in self._slow.values() if not reading.public)
            heaviest, count = slow_of.most_common(1)[0]
            theirs = [call for call, reading in self._slow.items() if reading.caller == heaviest]
            for call in theirs[count // 2 :]:
                call.end(InferplaneError.overloaded("requests that arrive slowly hold too much"))


def _resident() -> int:
    """Bytes of this process in memory (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
