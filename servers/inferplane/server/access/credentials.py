"""Finds the credentials of a call in its metadata."""

from collections.abc import Iterable

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError

__all__ = ["bearer_token"]

MAX_TOKEN_LENGTH = 8192


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
