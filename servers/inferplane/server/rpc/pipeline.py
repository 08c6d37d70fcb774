"""Puts the interceptors around every handler: one way for unary and streaming, from raw bytes to raw bytes.

Handlers of unary methods are registered as if their requests were streams, which is the same on the wire: so they run
on a call's headers, and an unauthenticated caller's bytes are neither read nor parsed. Deserialising happens inside, so
that malformed bytes meet the same error translation as everything else.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError, Message

from inferplane.common.v1.access_pb2 import AccessRule
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.rpc.call import Call, Context, arrive_with
from inferplane.server.rpc.intake.bodies import BodyReader
from inferplane.server.rpc.methods import Method, method_of
from inferplane.server.rpc.running import RunningCalls

__all__ = ["BodyCheck", "Handler", "Handlers", "Interceptor", "Pacing", "Pipeline", "at_most"]

Interceptor = Callable[[Call], AbstractAsyncContextManager[None]]
"""Runs around a call; what it raises, and what is raised inside it, reaches those further out."""

Pacing = Callable[[Call, AsyncIterator[bytes]], AsyncIterator[bytes]]
"""Passes on the messages of a request stream, and raises where they come too slowly."""

BodyCheck = Callable[[bytes], None]
"""Raises InferplaneError where a body, not parsed yet, would cost too much."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def at_most(size: int) -> BodyCheck:
    """Bodies of up to `size` bytes."""

    def check(body: bytes) -> None:
        if len(body) > size:
            raise InferplaneError(
                ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, detail=f"it has {len(body)} bytes, {size} are allowed"
            )

    return check


UNKNOWN = "unknown"


class Pipeline:
    """Wraps handlers, and answers calls of methods that do not exist. `check` is what bodies must pass where a
    service names nothing else, `public_check` those of public methods."""

    def __init__(
        self,
        interceptors: Sequence[Interceptor],
        pacing: Pacing,
        calls: RunningCalls,
        bodies: BodyReader,
        check: BodyCheck,
        public_check: BodyCheck,
    ) -> None:
        self._interceptors = interceptors
        self._pacing = pacing
        self._calls = calls
        self._bodies = bodies
        self._check = check
        self._public_check = public_check

    def wrap_service(
        self, service: str, handlers: Mapping[str, Handler], checks: Mapping[str, BodyCheck] | None = None
    ) -> dict[str, Handler]:
        """The same handlers with the interceptors around them; MissingAccessRuleError if one has no rule."""
        own = checks or {}
        return {name: self._wrap(service, name, handler, own.get(name)) for name, handler in handlers.items()}

    def _wrap(self, service: str, name: str, handler: Handler, check: BodyCheck | None) -> Handler:
        method = method_of(service, name, streams=handler.request_streaming or handler.response_streaming)
        read = _deserializer(handler)
        write = cast("Callable[[Message], bytes]", handler.response_serializer or bytes)
        behaviour = _behaviour(handler)
        check = check or (self._public_check if method.access.public else self._check)

        async def requests(call: Call) -> Any:
            if handler.request_streaming:
                return self._read_stream(call, read, check)
            body = await self._bodies.read(call)
            check(body)
            return _admitted(call, read(body))

        async def answer(_requests: Any, context: Context) -> bytes:
            async def work(call: Call) -> bytes:
                return write(await behaviour(await requests(call), context))

            return await self.around(method, context, work)

        async def answer_stream(_requests: Any, context: Context) -> None:
            # Written, not yielded: a cancelled call then always ends inside the interceptors.
            async def work(call: Call) -> bytes:
                async with aclosing(behaviour(await requests(call), context)) as answers:
                    async for message in answers:
                        await call.write(write(message))
                return b""

            await self.around(method, context, work)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(cast("Any", answer_stream))
        return grpc.stream_unary_rpc_method_handler(cast("Any", answer))

    async def around(self, method: Method, context: Context, work: Callable[[Call], Awaitable[bytes]]) -> bytes:
        """Do `work` inside all interceptors; the answer, which is nothing where the call was refused or ended."""
        call = Call(method, context)
        call.enter()
        async with AsyncExitStack() as stack:
            stack.enter_context(self._calls.tracking(call))
            for interceptor in self._interceptors:
                await stack.enter_async_context(interceptor(call))
            if method.streams and method.service != UNKNOWN:
                self._calls.claim_stream(call)
            return await work(call)
        return b""

    async def _read_stream(
        self, call: Call, read: Callable[[bytes], Message], check: BodyCheck
    ) -> AsyncIterator[Message]:
        async for data in self._pacing(call, self._bodies.messages(call)):
            check(data)
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


class Handlers(grpc.GenericRpcHandler):
    """All methods by their paths. What is none of them is answered with UNKNOWN_METHOD."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._handlers: dict[str, Handler] = {}

    def add(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Add those of a service, by their names."""
        self._handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        arrive_with(cast("Any", handler_call_details).invocation_metadata)
        path = handler_call_details.method
        return self._handlers.get(path) or self._unknown(*path.strip("/").rpartition("/")[::2])

    def _unknown(self, service: str, name: str) -> Handler:
        # One label for all of them: a caller must not be able to fill the metrics with names.
        method = Method("/unknown", UNKNOWN, UNKNOWN, AccessRule(public=True), streams=True)

        async def refuse(_requests: AsyncIterator[bytes], context: Context) -> None:
            async def work(_call: Call) -> bytes:
                raise InferplaneError(ErrorReason.ERROR_REASON_UNKNOWN_METHOD, service=service[:100], method=name[:100])

            await self._pipeline.around(method, context, work)

        return grpc.stream_stream_rpc_method_handler(cast("Any", refuse))
