"""Puts the interceptors around every handler: one way for unary and streaming, from raw bytes to raw bytes.

Deserialising happens inside, so that malformed bytes meet the same error translation as everything else, and an
unauthenticated caller's bytes are never parsed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError, Message

from inferplane.common.v1.access_pb2 import AccessRule
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.rpc.call import Call, Context
from inferplane.server.rpc.methods import Method, method_of

__all__ = ["Handler", "Interceptor", "Pacing", "Pipeline", "RunningCalls"]

Interceptor = Callable[[Call], AbstractAsyncContextManager[None]]
"""Runs around a call; what it raises, and what is raised inside it, reaches those further out."""

Pacing = Callable[[Call, AsyncIterator[bytes]], AsyncIterator[bytes]]
"""Passes on the messages of a request stream, and raises where they come too slowly."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class RunningCalls:
    """The calls that run now, so that a stop can end streams and wait for all handlers."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._draining = False

    @contextmanager
    def tracking(self, call: Call) -> Iterator[None]:
        """Count `call` as running; while draining a new stream is not begun."""
        if self._draining and call.method.streams:
            call.draining = True
        self._calls.add(call)
        try:
            yield
        finally:
            self._calls.discard(call)

    async def end_streams(self, farewell: float) -> None:
        """Give streams `farewell` seconds to say their last word, then end them with SHUTTING_DOWN."""
        self._draining = True
        if tasks := self._tasks(streams=True):
            await asyncio.wait(tasks, timeout=farewell)
        for call in list(self._calls):
            if call.method.streams and call.task is not None:
                call.draining = True
                call.task.cancel()

    async def finished(self) -> None:
        """Wait until no handler runs any more."""
        while tasks := self._tasks():
            await asyncio.wait(tasks)

    def _tasks(self, *, streams: bool | None = None) -> list[asyncio.Task[Any]]:
        return [c.task for c in self._calls if c.task is not None and streams in (None, c.method.streams)]


class Pipeline:
    """Wraps handlers, and answers calls of methods that do not exist."""

    def __init__(self, interceptors: Sequence[Interceptor], pacing: Pacing, calls: RunningCalls) -> None:
        self._interceptors = interceptors
        self._pacing = pacing
        self._calls = calls

    def wrap_service(self, service: str, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
        """The same handlers with the interceptors around them; MissingAccessRuleError if one has no rule."""
        return {name: self._wrap(service, name, handler) for name, handler in handlers.items()}

    def unknown(self) -> grpc.GenericRpcHandler:
        """Answers everything that no service answers with UNKNOWN_METHOD."""
        return _UnknownMethods(self)

    def _wrap(self, service: str, name: str, handler: Handler) -> Handler:
        method = method_of(service, name, streams=handler.request_streaming or handler.response_streaming)
        read = _deserializer(handler)
        write = cast("Callable[[Message], bytes]", handler.response_serializer or bytes)
        behaviour = _behaviour(handler)

        def requests(call: Call, raw: Any) -> Any:
            return self._read_stream(call, raw, read) if handler.request_streaming else _admitted(call, read(raw))

        async def answer(raw: Any, context: Context) -> bytes:
            async with self.around(method, context) as call:
                return write(await behaviour(requests(call, raw), context))

        async def answer_stream(raw: Any, context: Context) -> None:
            # Written, not yielded: a cancelled call then always ends inside the interceptors.
            async with (
                self.around(method, context) as call,
                aclosing(behaviour(requests(call, raw), context)) as answers,
            ):
                async for message in answers:
                    await context.write(write(message))

        return _handler(handler, answer_stream if handler.response_streaming else answer)

    @asynccontextmanager
    async def around(self, method: Method, context: Context) -> AsyncIterator[Call]:
        """Enter all interceptors for one call."""
        call = Call(method, context)
        call.enter()
        async with AsyncExitStack() as stack:
            stack.enter_context(self._calls.tracking(call))
            for interceptor in self._interceptors:
                await stack.enter_async_context(interceptor(call))
            yield call

    async def _read_stream(
        self, call: Call, raw: AsyncIterator[bytes], read: Callable[[bytes], Message]
    ) -> AsyncIterator[Message]:
        async for data in self._pacing(call, raw):
            yield _admitted(call, read(data))


def _admitted(call: Call, message: Message) -> Message:
    call.admit(message)
    return message


def _behaviour(handler: Handler) -> Callable[[Any, Context], Any]:
    if handler.request_streaming:
        behaviour: Any = handler.stream_stream if handler.response_streaming else handler.stream_unary
    else:
        behaviour = handler.unary_stream if handler.response_streaming else handler.unary_unary
    return cast("Callable[[Any, Context], Any]", behaviour)


def _deserializer(handler: Handler) -> Callable[[bytes], Message]:
    parse = handler.request_deserializer

    def read(data: bytes) -> Message:
        if parse is None:
            return cast("Message", data)
        try:
            return cast("Message", parse(data))
        except (DecodeError, ValueError) as error:
            raise InferplaneError(ErrorReason.ERROR_REASON_MALFORMED_REQUEST) from error

    return read


def _handler(shape: Handler, behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Handler:
    if shape.request_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler if shape.response_streaming else grpc.stream_unary_rpc_method_handler
        )
    else:
        make = grpc.unary_stream_rpc_method_handler if shape.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(cast("Any", behaviour))


class _UnknownMethods(grpc.GenericRpcHandler):
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        service, _, name = handler_call_details.method.strip("/").rpartition("/")
        # One label for all of them: a caller must not be able to fill the metrics with names.
        method = Method("/unknown", "unknown", "unknown", AccessRule(public=True), streams=True)

        async def refuse(_requests: AsyncIterator[bytes], context: Context) -> None:
            async with self._pipeline.around(method, context):
                raise InferplaneError(ErrorReason.ERROR_REASON_UNKNOWN_METHOD, service=service[:100], method=name[:100])

        return grpc.stream_stream_rpc_method_handler(cast("Any", refuse))
