"""What the interceptors and handlers know of the call that they serve."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import chain
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import ANONYMOUS, Principal
from inferplane.server.ids import uuid7_text
from inferplane.server.rpc.methods import Method
from inferplane.server.rpc.peers import address_of
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import works_for

__all__ = ["Call", "Context", "Metadata", "arrive_with", "current_call"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
_current: ContextVar["Call"] = ContextVar("inferplane_call")
_arrived: ContextVar[Metadata] = ContextVar("inferplane_metadata", default=())


def arrive_with(metadata: Metadata) -> None:
    """Keep what came with the call that this task is about to serve: made anew it takes half a microsecond an entry."""
    _arrived.set(metadata)


class Call:
    """One RPC from its arrival to its end. Interceptors fill it in; handlers read it.

    `checks` are what each message must pass, `standing` what must go on to hold while a stream lasts; `ending` is why
    the call is being ended from outside, if it is. `farewell` is the sending of a status that is not OK; it waits until
    the client has read the answers before it, or is gone.
    """

    __slots__ = (
        "_afterwards", "_opening", "checks", "code", "connection", "context", "delivered", "ending", "farewell",
        "headers", "metadata", "method", "principal", "reason", "request_id", "standing", "started", "task",
    )  # fmt: skip

    def __init__(self, method: Method, context: Context) -> None:
        self.method = method
        self.context = context
        # gRPC's process ends where it is asked for this once the call is over.
        self.connection = str(context.peer())
        """The other end of its connection: address and port."""
        self.request_id = uuid7_text()
        self.started = time.monotonic()
        self.task: asyncio.Task[Any] | None = asyncio.current_task()
        self.principal: Principal = ANONYMOUS
        self.code: grpc.StatusCode = grpc.StatusCode.OK
        self.reason = ""
        self.ending: InferplaneError | None = None
        self.checks: Sequence[Callable[[Message], None]] = ()
        self.standing: Sequence[Callable[[], None]] = ()
        self.delivered = 0
        """Bytes of its messages so far."""
        self.metadata = _arrived.get()
        """Until the caller is known."""
        self.headers = 32 * len(self.metadata) + sum(map(len, chain.from_iterable(self.metadata)))
        """Bytes of its metadata as gRPC counts them."""
        _arrived.set(())
        self.farewell: asyncio.Future[None] | None = None
        self._opening: asyncio.Future[None] | None = None
        self._afterwards: Sequence[Callable[[], None]] = ()

    def must_pass(self, check: Callable[[Message], None]) -> None:
        """Apply `check` to each message."""
        self.checks = (*self.checks, check)

    def rests_on(self, check: Callable[[], None]) -> None:
        """Ask `check` again while a stream lasts; it raises InferplaneError where the stream must end."""
        self.standing = (*self.standing, check)

    def admit(self, message: Message) -> None:
        """Apply what the interceptors check on each message; raises InferplaneError."""
        for check in self.checks:
            check(message)

    def take_metadata(self) -> Metadata:
        """What came with it. It may be large, and is kept no longer."""
        metadata, self.metadata = self.metadata, ()
        return metadata

    @property
    def peer(self) -> str:
        """Who sends it, as far as the address tells."""
        return address_of(self.connection)

    def end(self, error: InferplaneError) -> None:
        """End the call with `error`, from outside of its task."""
        if self.ending is None and self.task is not None:
            self.ending = error
            self.task.cancel()

    async def write(self, message: bytes) -> None:
        """Send an answer of a stream; returns when the network has taken it."""
        if self._opening is None:
            # gRPC learns only from a write that is through that a call has been answered. Where it is ended in the
            # middle of the first, the status would be sent as if nothing had been, and refused.
            self._opening = asyncio.ensure_future(self.context.send_initial_metadata(()))
        if not self._opening.done():
            await asyncio.shield(self._opening)
        await self.context.write(message)

    async def opened(self, timeout: float) -> None:
        """Wait until a status can be sent, at most `timeout` seconds."""
        if self._opening is not None and not self._opening.done():
            await asyncio.wait([self._opening], timeout=timeout)

    def afterwards(self, work: Callable[[], None]) -> None:
        """Do `work` when gRPC has sent the last answer, or let the call go."""
        self._afterwards = (*self._afterwards, work)

    def leave(self) -> None:
        """The handler is through."""
        # They know what served the call, which may hold much.
        self.checks = self.standing = ()
        self._finish()

    def _finish(self) -> None:
        # gRPC's task sends the answer after its handler is through, and a farewell may outlast both.
        for sending in (self.task, self.farewell):
            if sending is not None and not sending.done():
                sending.add_done_callback(lambda _: self._finish())
                return
        works, self._afterwards = self._afterwards, ()
        for work in works:
            work()

    def enter(self) -> None:
        """Make this the task's current call."""
        _current.set(self)
        works_for(self._sharer)

    def _sharer(self) -> str:
        if self.principal is ANONYMOUS:
            return self.peer
        return f"{self.principal.subject} {self.principal.on_behalf_of}"

    @property
    def actor(self) -> Actor:
        """The caller as the audit records it."""
        return Actor(self.principal.subject, self.request_id, self.principal.on_behalf_of)


def current_call() -> Call:
    """The call that this task serves; LookupError outside of one."""
    return _current.get()
