"""Reads what uploads left: the bytes of a manifest of chunks, each checked before it is passed on."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.chunk_store import ChunkStore
from inferplane.server.artifact.slots import Slots
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import Principal

__all__ = ["Blob", "BlobReader", "Chunk", "stream", "total_size", "whole_digest"]

PIECE_SIZE = 256 << 10
"""What gRPC holds of a stream that its client has stopped reading, for as long as the client stays connected."""
READERS = 32
"""Streams that may hold a chunk of 16 MiB at once: half a gigabyte a process."""
READERS_EACH = 8
WORKLOAD_READERS = 8
"""As many more for the services of this installation, so that no caller can hold up the loading of models."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of bytes: the SHA-256 that they are stored under, as hexadecimal digits, and how many they are."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Blob:
    """The chunks of an artifact in order, and what they must make: `size` bytes of the SHA-256 `digest`, which is
    `sha256:` and hexadecimal digits."""

    manifest: Sequence[Chunk]
    size: int
    digest: str


def total_size(manifest: Sequence[Chunk]) -> int:
    """The bytes of all chunks together."""
    return sum(chunk.size for chunk in manifest)


async def stream(chunks: ChunkStore, blob: Blob) -> AsyncGenerator[bytes, None]:
    """The contents of the chunks in order; raises BLOB_CORRUPT instead of the first that is not what it must be, and
    instead of the last where all together are not."""
    _check_size(blob)
    whole = hashlib.sha256()
    for index, chunk in enumerate(blob.manifest):
        content = await _checked(chunks, chunk)
        await asyncio.to_thread(whole.update, content)
        if index == len(blob.manifest) - 1:
            _check_digest(blob, whole.hexdigest())
        yield content
    if not blob.manifest:
        _check_digest(blob, whole.hexdigest())


async def whole_digest(chunks: ChunkStore, manifest: Sequence[Chunk]) -> str:
    """The SHA-256 of all bytes as they are stored, as `sha256:` and hexadecimal digits; raises BLOB_CORRUPT."""
    whole = hashlib.sha256()
    for chunk in manifest:
        await asyncio.to_thread(whole.update, await _checked(chunks, chunk))
    return f"sha256:{whole.hexdigest()}"


class BlobReader:
    """Reads ranges for callers. Slots bound how many of them hold a chunk in memory; workloads have their own."""

    def __init__(self, chunks: ChunkStore, people: Slots | None = None, workloads: Slots | None = None) -> None:
        self._chunks = chunks
        self._people = people or Slots(READERS, READERS_EACH)
        self._workloads = workloads or Slots(WORKLOAD_READERS, WORKLOAD_READERS)

    async def read(
        self, blob: Blob, offset: int, limit: int, caller: Principal
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """At most `limit` bytes (0: all) from `offset`, as positions and pieces of at most 256 KiB.

        Raises READ_OFFSET_OUT_OF_RANGE; BLOB_CORRUPT, of a read of everything also where the parts are whole and
        together not what they must be; and OVERLOADED while too many others read.
        """
        _check_size(blob)
        if offset > blob.size:
            raise InferplaneError(ErrorReason.ERROR_REASON_READ_OFFSET_OUT_OF_RANGE, size=str(blob.size))
        end = min(blob.size, offset + limit) if limit else blob.size
        slots = self._people if caller.workload is None else self._workloads
        async with slots.taken(caller.subject), aclosing(self._contents(blob, offset, end)) as contents:
            async for position, content in contents:
                first, last = max(offset - position, 0), min(end - position, len(content))
                for start in range(first, last, PIECE_SIZE):
                    yield position + start, bytes(content[start : min(start + PIECE_SIZE, last)])

    async def _contents(self, blob: Blob, offset: int, end: int) -> AsyncGenerator[tuple[int, memoryview], None]:
        """The chunks that hold bytes from `offset` up to `end`, each with its position."""
        if (offset, end) == (0, blob.size):
            position = 0
            async with aclosing(stream(self._chunks, blob)) as contents:
                async for content in contents:
                    yield position, memoryview(content)
                    position += len(content)
            return
        position = 0
        for chunk in blob.manifest:
            if offset < position + chunk.size and position < end:
                yield position, memoryview(await _checked(self._chunks, chunk))
            position += chunk.size


async def _checked(chunks: ChunkStore, chunk: Chunk) -> bytes:
    content = await chunks.read(chunk.digest)
    if len(content) != chunk.size:
        raise InferplaneError(ErrorReason.ERROR_REASON_BLOB_CORRUPT, chunk=chunk.digest)
    return content


def _check_size(blob: Blob) -> None:
    size = total_size(blob.manifest)
    if size != blob.size:
        raise InferplaneError(ErrorReason.ERROR_REASON_BLOB_CORRUPT, size=str(size), expected=str(blob.size))


def _check_digest(blob: Blob, hexadecimal: str) -> None:
    if blob.digest != f"sha256:{hexadecimal}":
        raise InferplaneError(ErrorReason.ERROR_REASON_BLOB_CORRUPT, expected=blob.digest)
