"""Inspects finished uploads before they become versions."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from inferplane.server.artifact.blobs import Blob, stream
from inferplane.server.artifact.chunk_store import ChunkStore
from inferplane.server.artifact.slots import Slots
from inferplane.server.names import UploadName
from inferplane.server.tensors import Signature

__all__ = ["CandidateStore", "Inspect", "Inspection"]

CONCURRENCY = 2
WAIT = 300.0
"""An inspector may take several times its file's size in memory."""

Inspect = Callable[[AsyncIterator[bytes]], Awaitable[Signature]]


class CandidateStore(Protocol):
    """What `Inspection` needs of the tables."""

    async def candidate(self, name: UploadName) -> Blob | None:
        """The bytes of an upload that is complete and no version yet; None for any other."""


class Inspection:
    """Reads signatures, outside of any transaction: that takes up to minutes."""

    def __init__(self, store: CandidateStore, chunks: ChunkStore, inspect: Inspect) -> None:
        self._store = store
        self._chunks = chunks
        self._inspect = inspect
        self._slots = Slots(CONCURRENCY, 1, WAIT)

    async def signature(self, upload: UploadName, caller: str) -> Signature | None:
        """What the upload's file says about itself; None unless the upload can become a version.

        A repeated request finds its upload used and is spared the inspection. Raises MODEL_FORMAT_INVALID,
        MODEL_UNSUPPORTED, BLOB_CORRUPT, and OVERLOADED where `caller` has too many others under way.
        """
        async with self._slots.taken(caller):
            blob = await self._store.candidate(upload)
            if blob is None:
                return None
            async with aclosing(stream(self._chunks, blob)) as contents:
                return await self._inspect(contents)
