"""Finds out who calls, from the bearer token."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.identity import Principal
from inferplane.server.rpc.call import Call
from inferplane.server.rpc.pipeline import Interceptor

__all__ = ["TokenVerifier", "authentication", "bearer_token"]

MAX_TOKEN_LENGTH = 8192


class TokenVerifier(Protocol):
    """Verifies access tokens and workload tokens."""

    async def verify(self, token: str) -> Principal:
        """The principal that `token` proves; raises CREDENTIALS_INVALID or TOKEN_EXPIRED."""


def bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token of the one `authorization` header (RFC 6750); raises CREDENTIALS_MISSING or CREDENTIALS_INVALID."""
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        raise InferplaneError(ErrorReason.ERROR_REASON_CREDENTIALS_MISSING)
    if len(values) > 1:
        raise InferplaneError(ErrorReason.ERROR_REASON_CREDENTIALS_INVALID, detail="several authorization headers")
    scheme, _, token = str(values[0]).partition(" ")
    if scheme.lower() != "bearer" or not token or " " in token:
        raise InferplaneError(ErrorReason.ERROR_REASON_CREDENTIALS_INVALID, detail="not a bearer token")
    if len(token) > MAX_TOKEN_LENGTH:
        raise InferplaneError(ErrorReason.ERROR_REASON_CREDENTIALS_INVALID, detail="the token is too long")
    return token


def authentication(verifier: TokenVerifier) -> Interceptor:
    """An interceptor that fills in the call's principal, for all but public methods."""

    @asynccontextmanager
    async def authenticate(call: Call) -> AsyncIterator[None]:
        if not call.method.access.public:
            call.principal = await verifier.verify(bearer_token(call.context.invocation_metadata() or ()))
        yield

    def intercept(call: Call) -> AbstractAsyncContextManager[None]:
        return authenticate(call)

    return intercept
