"""Inspects finished uploads before they become versions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from inferplane.server.artifact.blobs import Chunk, stream
from inferplane.server.artifact.chunk_store import ChunkStore
from inferplane.server.names import UploadName
from inferplane.server.tensors import Signature

__all__ = ["CandidateStore", "Inspect", "Inspection"]

CONCURRENCY = 2
"""An inspector may take several times its file's size in memory."""

Inspect = Callable[[AsyncIterator[bytes]], Awaitable[Signature]]


class CandidateStore(Protocol):
    """What `Inspection` needs of the tables."""

    async def candidate(self, name: UploadName) -> list[Chunk] | None:
        """The chunks of an upload that is complete and no version yet; None for any other."""


class Inspection:
    """Reads signatures, outside of any transaction: that takes up to minutes."""

    def __init__(self, store: CandidateStore, chunks: ChunkStore, inspect: Inspect) -> None:
        self._store = store
        self._chunks = chunks
        self._inspect = inspect
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def signature(self, upload: UploadName) -> Signature | None:
        """What the upload's file says about itself; None unless the upload can become a version.

        A repeated request finds its upload used and is spared the inspection. Raises MODEL_FORMAT_INVALID,
        MODEL_UNSUPPORTED and BLOB_CORRUPT.
        """
        async with self._slots:
            manifest = await self._store.candidate(upload)
            if manifest is None:
                return None
            async with aclosing(stream(self._chunks, manifest)) as contents:
                return await self._inspect(contents)
