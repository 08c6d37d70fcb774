"""Reads the bodies of unary requests: after the caller is known, in turn between callers, within a budget and a time.

gRPC keeps at most 64 KiB of a body that nobody has asked for (`channel_arguments` in server.py), and what it read with
that (decision 0036); the rest of a body comes only when it is read here. How large one is shows only when it is whole;
nearly all are small and there already. Those that take longer are let come, as long as the process does not grow by
more than the budget.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import FairGate
from inferplane.server.rpc.call import Call
from inferplane.server.rpc.intake.arrivals import LOOK_INTERVAL, Arrivals
from inferplane.server.rpc.intake.process_memory import give_back_free_memory, resident_memory

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
PUBLIC_WAITING = 500
PUBLIC_WAITING_EACH = 250
"""Each holds its headers, up to 100 KiB, and at most 64 KiB of its body."""


class BodyReader:
    """Reads bodies, and the messages of streams. What of them arrives slowly is up to `arrivals`."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._gate = FairGate(_FULL, capacity=QUICK, each=QUICK_EACH, waiting=WAITING, waiting_each=WAITING_EACH)
        self._public_gate = FairGate(
            _FULL,
            capacity=PUBLIC_QUICK,
            each=PUBLIC_QUICK_EACH,
            waiting=PUBLIC_WAITING,
            waiting_each=PUBLIC_WAITING_EACH,
            displace=True,
        )
        self._quick: dict[Call, float] = {}
        self._arrivals = arrivals
        self._connections = arrivals.connections

    async def read(self, call: Call) -> bytes:
        """The body. Raises MALFORMED_REQUEST where there is none, and OVERLOADED.

        One that is too slow ends its call, with OVERLOADED or STREAM_STALLED.
        """
        self._connections.expect(call.connection)
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
                self._arrivals.over(call)
        if body is grpc.aio.EOF:
            raise InferplaneError(ErrorReason.ERROR_REASON_MALFORMED_REQUEST, detail="there is none")
        self._delivered(call, body)
        return body  # type: ignore[no-any-return] # bytes, where there is no deserialiser

    def _gate_of(self, call: Call) -> tuple[FairGate, str]:
        """Where the call waits for its turn, and as whom."""
        if call.method.access.public:
            return self._public_gate, call.peer
        return self._gate, call.principal.subject

    async def message(self, call: Call) -> Any:
        """The next message of a stream, or EOF."""
        self._connections.expect(call.connection)
        self._arrivals.message(call)
        try:
            message = await call.context.read()
        finally:
            self._arrivals.over(call)
        if message is not grpc.aio.EOF:
            self._delivered(call, message)
        return message

    def _delivered(self, call: Call, message: bytes) -> None:
        call.delivered += len(message)
        self._connections.deliver(call.connection, len(message))

    async def messages(self, call: Call) -> AsyncIterator[bytes]:
        """All messages of a stream."""
        while (message := await self.message(call)) is not grpc.aio.EOF:
            yield message

    async def sweep(self) -> None:
        """Look after the slow ones, until cancelled."""
        # Both once, at the beginning: where neither descriptor nor thread is left, slow bodies are looked after all the
        # same. The thread is its own, because strangers can keep the common ones busy.
        statm = os.open("/proc/self/statm", os.O_RDONLY)
        thread = ThreadPoolExecutor(1, "give_back")
        try:
            # So that the thread is there.
            giving: Future[None] | None = thread.submit(give_back_free_memory)
            while True:
                await asyncio.sleep(LOOK_INTERVAL)
                if giving is not None and giving.done():
                    giving.result()
                    giving = None
                    self._arrivals.given_back()
                now = time.monotonic()
                self._demote(now)
                if self._arrivals.look(now, resident_memory(statm)):
                    giving = thread.submit(give_back_free_memory)
        finally:
            thread.shutdown(wait=False)
            os.close(statm)

    def _demote(self, now: float) -> None:
        """Let those that take long count among the slow ones, in the order of their beginnings."""
        for call, since in [(call, since) for call, since in self._quick.items() if now - since > SLOW_AFTER]:
            del self._quick[call]
            gate, caller = self._gate_of(call)
            gate.leave(caller, 1)
            self._arrivals.body(call, since)
