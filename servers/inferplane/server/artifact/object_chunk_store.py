"""Chunks in an object store: S3, Google Cloud Storage or Azure, by URL."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

import obstore
import structlog
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore, from_url

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.chunk_store import ChunkBytes, unavailable, verified
from inferplane.server.errors import InferplaneError

__all__ = ["ObjectChunkStore"]

log = structlog.get_logger()

REQUEST_TIMEOUT = timedelta(seconds=60)
RETRY_TIMEOUT = timedelta(seconds=30)
NAME = "object store"

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "specified bucket does not exist")
_ENDPOINTS = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AZURE_ENDPOINT", "GOOGLE_BASE_URL")
_PLAIN = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")


class ObjectChunkStore:
    """Objects `sha256/<digest>` below the store's prefix."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def from_url(cls, url: str) -> "ObjectChunkStore":
        """The store at `s3://…`, `gs://…` or `az://…`; credentials come from the provider's own environment.

        Without TLS it is reached where that names an endpoint `http://…`, or says so (`AWS_ALLOW_HTTP=true`).
        """
        store = from_url(
            url,
            client_options={"timeout": REQUEST_TIMEOUT, "allow_http": _plain_http(os.environ)},
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
            except FileNotFoundError as error:
                raise unavailable(NAME, "has no such bucket", retry_after=None) from error
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

    async def check(self, *, writes: bool) -> None:
        """See `ChunkStore.check`. A bucket cannot be full, and may keep each version of a probe: reading is enough."""
        async with _outages_as_unavailable():
            try:
                await obstore.get_async(self._store, _path("0" * 64))
            except FileNotFoundError as error:
                if any(said in str(error) for said in _NO_BUCKET):
                    raise unavailable(NAME, "has no such bucket", retry_after=None) from error

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


def _plain_http(environment: Mapping[str, str]) -> bool:
    """Whether the environment asks for a connection without TLS. Options that are passed hide what it says itself."""
    said = {name.upper(): value.strip().lower() for name, value in environment.items()}
    named = any(said.get(name, "").startswith("http://") for name in _ENDPOINTS)
    return named or any(said.get(name) in ("true", "1") for name in _PLAIN)


@asynccontextmanager
async def _outages_as_unavailable() -> AsyncIterator[None]:
    try:
        yield
    except (UnauthenticatedError, PermissionDeniedError) as error:
        log.exception("object_store_failed", error=type(error).__name__)
        # To try again would not help.
        raise unavailable(NAME, "refuses our credentials", retry_after=None) from error
    except (BaseError, TimeoutError) as error:
        log.exception("object_store_failed", error=type(error).__name__)
        raise unavailable(NAME) from error
