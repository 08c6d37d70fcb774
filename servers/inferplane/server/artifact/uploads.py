"""Uploads: bytes that arrive in pieces, are kept in chunks, and count once they are durable."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.blobs import Chunk, total_size, whole_digest
from inferplane.server.artifact.chunk_store import ChunkStore, chunk_digest
from inferplane.server.artifact.slots import Slots
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.ids import now
from inferplane.server.names import UPLOAD, UploadName
from inferplane.server.storage.audit import Actor

if TYPE_CHECKING:
    from inferplane.server.artifact.upload_repository import UploadRepository

__all__ = ["CHUNK_SIZE", "Finish", "Piece", "Upload", "Uploads"]

log = structlog.get_logger()

CHUNK_SIZE = 16 << 20
WRITERS = 16
"""Streams that may fill a chunk of 16 MiB at once: a quarter of a gigabyte a process."""
WRITERS_EACH = 4

STALE_AFTER = timedelta(days=7)
"""For uploads that nobody goes on with, and for complete ones of which nobody makes a version."""
UNUSED_AFTER = timedelta(days=1)
"""Far longer than a chunk stays between its writing and its place in an upload."""

STORE_IS_AWAY = 20
"""So many chunks in a row could not be removed: it is the store that fails, and the next round is early enough."""


@dataclass(frozen=True, slots=True)
class Finish:
    """What the whole must be: `size` in bytes, `digest` as `sha256:` and 64 hexadecimal digits."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Piece:
    """One message of a write: `data` that begins at `offset`, and `finish` in the last one."""

    upload: UploadName
    offset: int
    data: bytes
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as stored. `digest` is empty until it is complete; `created_at` also tells it from one of the
    same name that was discarded."""

    name: UploadName
    committed_size: int
    complete: bool
    digest: str
    created_at: datetime


class Uploads:
    """Takes writes and completes uploads. Sizes are in bytes."""

    def __init__(
        self,
        store: "UploadRepository",
        chunks: ChunkStore,
        max_size: int,
        chunk_size: int = CHUNK_SIZE,
        slots: Slots | None = None,
    ) -> None:
        self._store = store
        self._chunks = chunks
        self._max_size = max_size
        self._chunk_size = chunk_size
        self._slots = slots or Slots(WRITERS, WRITERS_EACH)

    async def status(self, name: UploadName) -> Upload:
        """Raises UPLOAD_NOT_FOUND."""
        upload = await self._store.find(name)
        if upload is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_UPLOAD_NOT_FOUND, upload=UPLOAD.format(*name))
        return upload

    async def write(self, pieces: AsyncIterator[Piece], actor: Actor) -> Upload:
        """Take the pieces of one stream; the upload as it stands afterwards.

        A stream that breaks off, or ends without `finish`, leaves all full chunks and loses the rest.

        Raises MODEL_NOT_FOUND; WRITE_OFFSET_MISMATCH; UPLOAD_NOT_OPEN; UPLOAD_BUSY where another stream went
        ahead; ARTIFACT_TOO_LARGE, DIGEST_MISMATCH and BLOB_CORRUPT, after which the upload begins anew;
        DEPENDENCY_UNAVAILABLE; OVERLOADED while too many others write.
        """
        # Before anything is read: streams that wait hold no message.
        async with self._slots.taken(actor.subject):
            first = await anext(pieces, None)
            if first is None:
                raise invalid_field("upload", "must be named in the first message")
            upload = await self._open(first, actor)
            writer = _Writer(upload, self._store, self._chunks, self._max_size, self._chunk_size)
            await writer.take(first, actor)
            async for piece in pieces:
                await writer.take(piece, actor)
            return await writer.end(actor)

    async def clean_up(self) -> None:
        """Delete uploads that nobody goes on with, then remove the chunks that no upload has."""
        await self._store.delete_stale(now() - STALE_AFTER)
        written_before = now() - UNUSED_AFTER
        failures_in_a_row = 0
        for digest in await self._store.unused(written_before):
            try:
                await self._store.collect(digest, written_before, self._chunks)
                failures_in_a_row = 0
            except InferplaneError as error:
                # It must not keep those behind it; another round tries it again.
                log.warning("chunk_not_removed", chunk=digest, error=str(error))
                failures_in_a_row += 1
                if failures_in_a_row == STORE_IS_AWAY:
                    return

    async def _open(self, first: Piece, actor: Actor) -> Upload:
        upload = await self._store.find(first.upload)
        if upload is not None:
            return upload
        if first.offset != 0:
            raise _misplaced(0)
        return await self._store.begin(first.upload, now(), actor)


class _Writer:
    """What one stream writes. At most one chunk is in memory, and each is committed only if the upload is still
    as this stream left it, so that two streams never mix their bytes."""

    def __init__(
        self, upload: Upload, store: "UploadRepository", chunks: ChunkStore, max_size: int, chunk_size: int
    ) -> None:
        self._upload = upload
        self._store = store
        self._chunks = chunks
        self._max_size = max_size
        self._chunk_size = chunk_size
        self._buffer = bytearray()
        self._finish: Finish | None = None

    async def take(self, piece: Piece, actor: Actor) -> None:
        """Add a piece."""
        if self._finish is not None:
            raise invalid_field("finish", "must be in the last message")
        if self._upload.complete:
            self._check_repetition(piece)
        else:
            await self._add(piece, actor)
        self._finish = piece.finish

    async def end(self, actor: Actor) -> Upload:
        """The upload after the last piece: complete if that said what the whole must be."""
        if self._finish is None or self._upload.complete:
            return self._upload
        last = await self._store_buffer() if self._buffer else None
        manifest = await self._store.manifest(self._upload.name)
        if total_size(manifest) != self._upload.committed_size:
            raise _busy()
        await self._check_whole([*manifest, last] if last else manifest, self._finish, actor)
        complete = replace(self._upload, committed_size=self._finish.size, complete=True, digest=self._finish.digest)
        if not await self._store.complete(self._upload, complete, last, actor):
            raise _busy()
        return complete

    async def _add(self, piece: Piece, actor: Actor) -> None:
        position = self._upload.committed_size + len(self._buffer)
        if piece.offset != position:
            raise _misplaced(self._upload.committed_size)
        if position + len(piece.data) > self._max_size:
            # It can never be completed.
            await self._discard(actor)
            raise InferplaneError(ErrorReason.ERROR_REASON_ARTIFACT_TOO_LARGE, max_size=str(self._max_size))
        rest = memoryview(piece.data)
        while rest:
            room = self._chunk_size - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            if len(self._buffer) == self._chunk_size:
                await self._commit_chunk()

    async def _commit_chunk(self) -> None:
        chunk = await self._store_buffer()
        if not await self._store.add_chunk(self._upload, chunk):
            raise _busy()
        self._upload = replace(self._upload, committed_size=self._upload.committed_size + chunk.size)

    async def _store_buffer(self) -> Chunk:
        data, self._buffer = self._buffer, bytearray()
        digest = await asyncio.to_thread(chunk_digest, data)
        await self._store.announce(digest)
        await self._chunks.put(digest, data)
        return Chunk(digest, len(data))

    async def _check_whole(self, manifest: Sequence[Chunk], finish: Finish, actor: Actor) -> None:
        """Compare what is stored with what was declared. It is read again, so that this checks the disk too."""
        try:
            digest = await whole_digest(self._chunks, manifest)
        except InferplaneError as error:
            if error.reason == ErrorReason.ERROR_REASON_BLOB_CORRUPT:
                # Only writing the bytes anew can mend the chunk.
                await self._discard(actor)
            raise
        size = total_size(manifest)
        if (size, digest) != (finish.size, finish.digest):
            await self._discard(actor)
            raise InferplaneError(ErrorReason.ERROR_REASON_DIGEST_MISMATCH, size=str(size), digest=digest)

    async def _discard(self, actor: Actor) -> None:
        if not await self._store.discard(self._upload, actor):
            raise _busy()

    def _check_repetition(self, piece: Piece) -> None:
        """Let a client that missed the answer say `finish` once more, and nothing else."""
        if piece.data or piece.finish != Finish(self._upload.committed_size, self._upload.digest):
            raise InferplaneError(ErrorReason.ERROR_REASON_UPLOAD_NOT_OPEN)


def _busy() -> InferplaneError:
    return InferplaneError(ErrorReason.ERROR_REASON_UPLOAD_BUSY, retry_after=1.0)


def _misplaced(committed_size: int) -> InferplaneError:
    return InferplaneError(ErrorReason.ERROR_REASON_WRITE_OFFSET_MISMATCH, committed_size=str(committed_size))
