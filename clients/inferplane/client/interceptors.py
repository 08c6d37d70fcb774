"""What every call gets on its way out: the access token and, where it has none, the default deadline."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from inferplane.auth.v1 import auth_service_pb2
from inferplane.client.errors import Unauthenticated, translate
from inferplane.client.session import Session
from inferplane.common.v1 import access_pb2

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def _public_methods(service: ServiceDescriptor) -> frozenset[str]:
    return frozenset(
        f"/{service.full_name}/{method.name}"
        for method in service.methods
        if method.GetOptions().Extensions[access_pb2.access].public
    )


_PUBLIC = _public_methods(auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"])


def _method(details: grpc.aio.ClientCallDetails) -> str:
    # grpc.aio hands the name over as bytes, whatever its annotations say.
    method: str | bytes = details.method
    return method.decode() if isinstance(method, bytes) else method


def _authenticated(
    details: grpc.aio.ClientCallDetails, token: str | None, timeout: float | None
) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    if token is not None and not metadata.get_all("authorization"):
        metadata.add("authorization", f"Bearer {token}")
    return grpc.aio.ClientCallDetails(details.method, timeout, metadata, details.credentials, details.wait_for_ready)


class UnaryInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Unary calls: token, deadline, and one more try after TOKEN_EXPIRED."""

    def __init__(self, session: Session, timeout: float) -> None:
        self._session = session
        self._timeout = timeout

    async def intercept_unary_unary(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, _Request],
            Awaitable[grpc.aio.UnaryUnaryCall[_Request, _Response]],
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: _Request,
    ) -> _Response | grpc.aio.UnaryUnaryCall[_Request, _Response]:
        """Send the call with what it lacks."""
        timeout = self._timeout if client_call_details.timeout is None else client_call_details.timeout
        if _method(client_call_details) in _PUBLIC:
            return await continuation(_authenticated(client_call_details, None, timeout), request)
        token = await self._session.access_token()
        call = await continuation(_authenticated(client_call_details, token, timeout), request)
        if token is None or not await _may_be_renewed(call):
            return call
        try:
            token = await self._session.renew(token)
        except Unauthenticated as error:
            if error.reason != "TOKEN_EXPIRED":
                raise
            # There is nothing to renew it with: what was said first stands.
            return call
        return await continuation(_authenticated(client_call_details, token, timeout), request)


async def _may_be_renewed(call: grpc.aio.UnaryUnaryCall[_Request, _Response]) -> bool:
    if await call.code() is not grpc.StatusCode.UNAUTHENTICATED:
        return False
    try:
        await call
    except grpc.aio.AioRpcError as error:
        # Of an ended session there may be a successor: another process of this user has signed in again.
        return translate(error).reason in ("TOKEN_EXPIRED", "SESSION_ENDED")
    return False


class ResponseStreamInterceptor(grpc.aio.UnaryStreamClientInterceptor):
    """Calls that answer with a stream: token, no deadline."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def intercept_unary_stream(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, _Request],
            Awaitable[grpc.aio.UnaryStreamCall[_Request, _Response]],
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: _Request,
    ) -> AsyncIterator[_Response] | grpc.aio.UnaryStreamCall[_Request, _Response]:
        """Send the call with the token."""
        token = await self._session.access_token()
        details = _authenticated(client_call_details, token, client_call_details.timeout)
        return await continuation(details, request)


class RequestStreamInterceptor(grpc.aio.StreamUnaryClientInterceptor):
    """Calls that send a stream: token, no deadline."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def intercept_stream_unary(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, AsyncIterable[_Request] | Iterable[_Request]],
            Awaitable[grpc.aio.StreamUnaryCall[_Request, _Response]],
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: AsyncIterable[_Request] | Iterable[_Request],
    ) -> _Response | grpc.aio.StreamUnaryCall[_Request, _Response]:
        """Send the call with the token."""
        token = await self._session.access_token()
        details = _authenticated(client_call_details, token, client_call_details.timeout)
        return await continuation(details, request_iterator)


def interceptors(session: Session, timeout: float) -> list[grpc.aio.ClientInterceptor]:
    """Make one interceptor for each kind of call: grpc.aio uses only the first kind that one implements."""
    return [
        UnaryInterceptor(session, timeout),
        ResponseStreamInterceptor(session),
        RequestStreamInterceptor(session),
    ]
