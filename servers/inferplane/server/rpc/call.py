"""What the interceptors and handlers know of the call that they serve."""

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from inferplane.server.access.principal import ANONYMOUS, Principal
from inferplane.server.ids import uuid7
from inferplane.server.rpc.methods import Method
from inferplane.server.storage.audit import Actor

__all__ = ["Call", "Context", "current_call"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_current: ContextVar["Call"] = ContextVar("inferplane_call")


@dataclass(slots=True, eq=False)
class Call:
    """One RPC from its arrival to its end. Interceptors fill it in; handlers read it."""

    method: Method
    context: Context
    request_id: str = field(default_factory=lambda: str(uuid7()))
    started: float = field(default_factory=time.monotonic)
    principal: Principal = ANONYMOUS
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    draining: bool = False
    task: "asyncio.Task[Any] | None" = field(default_factory=asyncio.current_task)
    checks: list[Callable[[Message], None]] = field(default_factory=list)

    def admit(self, message: Message) -> None:
        """Apply what the interceptors check on each message; raises InferplaneError."""
        for check in self.checks:
            check(message)

    def enter(self) -> None:
        """Make this the task's current call."""
        _current.set(self)

    @property
    def actor(self) -> Actor:
        """The caller as the audit records it."""
        return Actor(self.principal.subject, self.request_id, self.principal.on_behalf_of)


def current_call() -> Call:
    """The call that this task serves; LookupError outside of one."""
    return _current.get()
