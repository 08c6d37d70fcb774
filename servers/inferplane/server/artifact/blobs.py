"""Reads what uploads left: the bytes of a manifest of chunks, each checked before it is passed on."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.chunk_store import ChunkStore, Slots
from inferplane.server.errors import InferplaneError

__all__ = ["BlobReader", "Chunk", "stream", "total_size", "whole_digest"]

PIECE_SIZE = 1 << 20
READERS = 32
"""Streams that may hold a chunk of 16 MiB at once: half a gigabyte a process."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of bytes: the SHA-256 that they are stored under, as hexadecimal digits, and how many they are."""

    digest: str
    size: int


def total_size(manifest: Sequence[Chunk]) -> int:
    """The bytes of all chunks together."""
    return sum(chunk.size for chunk in manifest)


async def stream(chunks: ChunkStore, manifest: Sequence[Chunk]) -> AsyncGenerator[bytes, None]:
    """The chunks in order; raises BLOB_CORRUPT at one whose bytes are lost or changed."""
    for chunk in manifest:
        yield await chunks.read(chunk.digest)


async def whole_digest(chunks: ChunkStore, manifest: Sequence[Chunk]) -> str:
    """The SHA-256 of all bytes as they are stored, as `sha256:` and hexadecimal digits; raises BLOB_CORRUPT."""
    whole = hashlib.sha256()
    async with aclosing(stream(chunks, manifest)) as contents:
        async for content in contents:
            await asyncio.to_thread(whole.update, content)
    return f"sha256:{whole.hexdigest()}"


class BlobReader:
    """Reads ranges for callers. `readers` bounds how many of them hold a chunk in memory."""

    def __init__(self, chunks: ChunkStore, readers: int = READERS) -> None:
        self._chunks = chunks
        self._slots = Slots(readers)

    async def read(self, manifest: Sequence[Chunk], offset: int, limit: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """At most `limit` bytes (0: all) from `offset`, as positions and pieces of at most 1 MiB.

        Raises READ_OFFSET_OUT_OF_RANGE, BLOB_CORRUPT, and DEPENDENCY_UNAVAILABLE while too many others read.
        """
        size = total_size(manifest)
        if offset > size:
            raise InferplaneError(ErrorReason.ERROR_REASON_READ_OFFSET_OUT_OF_RANGE, size=str(size))
        end = min(size, offset + limit) if limit else size
        position = 0
        async with self._slots.taken():
            for chunk in manifest:
                first, last = max(offset - position, 0), min(end - position, chunk.size)
                if first < last:
                    content = memoryview(await self._chunks.read(chunk.digest))[:last]
                    for start in range(first, last, PIECE_SIZE):
                        yield position + start, bytes(content[start : start + PIECE_SIZE])
                position += chunk.size
