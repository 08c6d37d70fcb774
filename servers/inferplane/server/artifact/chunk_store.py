"""Where the bytes of chunks lie: each under its SHA-256, so that a chunk never changes and equal ones are one."""

import hashlib
from typing import Protocol, TypeAlias

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError

__all__ = ["ChunkBytes", "ChunkStore", "chunk_digest", "unavailable", "verified"]

ChunkBytes: TypeAlias = bytes | bytearray


class ChunkStore(Protocol):
    """A store of chunks of at most 16 MiB. A digest is 64 lowercase hexadecimal digits."""

    async def put(self, digest: str, data: ChunkBytes) -> None:
        """Store `data`, whose SHA-256 is `digest`, durably; doing so again changes nothing.

        Raises DEPENDENCY_UNAVAILABLE where the store fails.
        """

    async def read(self, digest: str) -> bytes:
        """The chunk's bytes, checked; raises BLOB_CORRUPT where they are lost or changed."""

    async def exists(self, digest: str) -> bool:
        """Whether there is such a chunk; its bytes are not looked at."""

    async def delete(self, digest: str) -> None:
        """Remove a chunk, if it is there."""

    async def check(self, *, writes: bool) -> None:
        """Raises DEPENDENCY_UNAVAILABLE unless chunks can be read or, where `writes`, written now."""


def chunk_digest(data: ChunkBytes) -> str:
    """The name that a chunk is stored under."""
    return hashlib.sha256(data).hexdigest()


def verified(digest: str, data: bytes) -> bytes:
    """`data` as it is; raises BLOB_CORRUPT unless its SHA-256 is `digest`."""
    if chunk_digest(data) != digest:
        raise InferplaneError(ErrorReason.ERROR_REASON_BLOB_CORRUPT, chunk=digest)
    return data


def unavailable(dependency: str, detail: str = "", retry_after: float | None = 1.0) -> InferplaneError:
    """DEPENDENCY_UNAVAILABLE; `detail` says in public what is wrong, where that is known."""
    reason = ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    if not detail:
        return InferplaneError(reason, retry_after=retry_after, dependency=dependency)
    said = f"the {dependency} {detail}"
    return InferplaneError(reason, retry_after=retry_after, dependency=dependency, detail=said)
