"""Inspects finished uploads before they become versions."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from inferplane.server.artifact.blobs import stream
from inferplane.server.artifact.chunk_store import ChunkStore
from inferplane.server.artifact.registry import Inspected
from inferplane.server.artifact.slots import Slots
from inferplane.server.names import UploadName
from inferplane.server.tensors import Signature

if TYPE_CHECKING:
    from inferplane.server.artifact.repository import Candidates

__all__ = ["Inspect", "Inspection"]

CONCURRENCY = 2
WAIT = 300.0
"""An inspector may take several times its file's size in memory."""

Inspect = Callable[[AsyncIterator[bytes]], Awaitable[Signature]]


class Inspection:
    """Reads signatures, outside of any transaction: that takes up to minutes."""

    def __init__(self, store: "Candidates", chunks: ChunkStore, inspect: Inspect) -> None:
        self._store = store
        self._chunks = chunks
        self._inspect = inspect
        self._slots = Slots(CONCURRENCY, 1, WAIT)

    async def inspected(self, name: UploadName, caller: str) -> Inspected | None:
        """What the upload's file says about itself; None unless the upload can become a version.

        A repeated request finds its upload used and is spared the inspection. Raises MODEL_FORMAT_INVALID,
        MODEL_UNSUPPORTED, BLOB_CORRUPT, and OVERLOADED where `caller` has too many others under way.
        """
        async with self._slots.taken(caller):
            candidate = await self._store.candidate(name)
            if candidate is None:
                return None
            upload, blob = candidate
            async with aclosing(stream(self._chunks, blob)) as contents:
                return Inspected(upload, await self._inspect(contents))
