"""Chunks in an object store: S3, Google Cloud Storage or Azure, by URL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, GenericError, JoinError, NotSupportedError
from obstore.store import ObjectStore, from_url

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.chunk_store import ChunkBytes, unavailable, verified
from inferplane.server.errors import InferplaneError

__all__ = ["ObjectChunkStore"]

log = structlog.get_logger()

REQUEST_TIMEOUT = timedelta(seconds=60)
RETRY_TIMEOUT = timedelta(seconds=30)


class ObjectChunkStore:
    """Objects `sha256/<digest>` below the store's prefix."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def from_url(cls, url: str) -> "ObjectChunkStore":
        """The store at `s3://…`, `gs://…` or `az://…`; credentials come from the provider's own environment."""
        store = from_url(
            url,
            client_options={"timeout": REQUEST_TIMEOUT},
            retry_config={"max_retries": 5, "retry_timeout": RETRY_TIMEOUT},
        )
        return cls(store)

    async def put(self, digest: str, data: ChunkBytes) -> None:
        """See `ChunkStore.put`. An object that is there already is replaced only where it is damaged."""
        path = _path(digest)
        async with _outages_as_unavailable():
            try:
                await obstore.put_async(self._store, path, data, mode="create", use_multipart=False)
                return
            except AlreadyExistsError:
                if await self._is_intact(digest):
                    return
            except NotSupportedError:
                # Not every store knows conditional writes; the bytes are the same whoever writes them.
                pass
            await obstore.put_async(self._store, path, data, use_multipart=False)

    async def read(self, digest: str) -> bytes:
        """See `ChunkStore.read`."""
        async with _outages_as_unavailable():
            try:
                result = await obstore.get_async(self._store, _path(digest))
                content = await result.bytes_async()
            except FileNotFoundError:
                raise InferplaneError(ErrorReason.ERROR_REASON_BLOB_CORRUPT, chunk=digest) from None
        return await asyncio.to_thread(lambda: verified(digest, content.to_bytes()))

    async def exists(self, digest: str) -> bool:
        """See `ChunkStore.exists`."""
        async with _outages_as_unavailable():
            try:
                await obstore.head_async(self._store, _path(digest))
            except FileNotFoundError:
                return False
        return True

    async def delete(self, digest: str) -> None:
        """See `ChunkStore.delete`."""
        async with _outages_as_unavailable():
            try:
                await obstore.delete_async(self._store, _path(digest))
            except FileNotFoundError:
                return

    async def _is_intact(self, digest: str) -> bool:
        try:
            await self.read(digest)
        except InferplaneError as error:
            if error.reason != ErrorReason.ERROR_REASON_BLOB_CORRUPT:
                raise
            return False
        return True


def _path(digest: str) -> str:
    return f"sha256/{digest}"


@asynccontextmanager
async def _outages_as_unavailable() -> AsyncIterator[None]:
    # Wrong credentials and the like are not among them: to try again would not help, and the log must show them.
    try:
        yield
    except (GenericError, JoinError, TimeoutError) as error:
        log.exception("object_store_failed", error=type(error).__name__)
        raise unavailable("object store") from error
