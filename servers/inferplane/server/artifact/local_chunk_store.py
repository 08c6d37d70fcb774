"""Chunks in a folder of this machine, on disk before they are acknowledged.

Object-store libraries write local files without fsync, so a power cut could take what was acknowledged.
"""

import asyncio
import errno
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.chunk_store import ChunkBytes, unavailable, verified
from inferplane.server.errors import InferplaneError
from inferplane.server.files import sync_folder

__all__ = ["LocalChunkStore"]

log = structlog.get_logger()

T = TypeVar("T")

NAME = "chunk store"
LEAST_ROOM = 64 << 20
"""Free bytes that no write takes away. Each further worker on the same disk may take one chunk of them."""
THREADS = 8
"""Most of them at work in the folder at once."""
START_TIMEOUT = 15.0
"""Seconds until a folder that does not answer fails the start."""

_PROBLEMS = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full",
    errno.EROFS: "is read-only",
    errno.EACCES: "may not be used: look at its permissions",
    errno.EPERM: "may not be used: look at its permissions",
}

STALE_SECONDS = 3600.0
"""A temporary file that nobody has written to for so long belongs to a process that is gone."""

_SCRATCH_SUFFIX = ".tmp"
_SHARDS = tuple(f"{number:02x}" for number in range(256))


class LocalChunkStore:
    """A folder with a subfolder for each first two digits of a digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places = asyncio.Semaphore(THREADS)
        self._taking_room = threading.Lock()
        self._checking: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, folder: Path) -> "LocalChunkStore":
        """The store in `folder`, which is made if it is new; removes what a crash left behind.

        Raises DEPENDENCY_UNAVAILABLE where the folder cannot be used or does not answer in time.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT):
                with _failures_said():
                    await asyncio.shield(_on_thread(lambda: _prepare(folder)))
        except TimeoutError as error:
            raise _hangs() from error
        return cls(folder)

    async def put(self, digest: str, data: ChunkBytes) -> None:
        """See `ChunkStore.put`. An existing chunk is written again: it may be damaged or not yet durable."""
        try:
            await self._off_loop(lambda: _write(self._path(digest), data, self._taking_room))
        except FileNotFoundError as error:
            raise unavailable(NAME, "has lost its folder") from error

    async def read(self, digest: str) -> bytes:
        """See `ChunkStore.read`."""
        try:
            return await self._off_loop(lambda: verified(digest, self._path(digest).read_bytes()))
        except FileNotFoundError:
            raise InferplaneError(ErrorReason.ERROR_REASON_BLOB_CORRUPT, chunk=digest) from None

    async def exists(self, digest: str) -> bool:
        """See `ChunkStore.exists`."""
        return await self._off_loop(self._path(digest).is_file)

    async def delete(self, digest: str) -> None:
        """See `ChunkStore.delete`."""
        await self._off_loop(lambda: self._path(digest).unlink(missing_ok=True))

    async def check(self, *, writes: bool) -> None:
        """See `ChunkStore.check`."""
        # Waits neither for a place nor, once cancelled, for its thread: a folder that hangs must be noticed. While one
        # check hangs there is no other, so that it takes one thread.
        if self._checking is not None and not self._checking.done():
            raise _hangs()
        self._checking = _on_thread(lambda: _probe(self._folder, writes))
        with _failures_said():
            await asyncio.shield(self._checking)

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    async def _off_loop(self, work: Callable[[], T]) -> T:
        """Do `work` on a thread. Where the caller is cancelled its end is waited for all the same: the chunk that the
        thread holds would otherwise escape the bound on memory."""
        async with self._places:
            running = _on_thread(work)
            try:
                with _failures_said():
                    return await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.wait([running])
                raise


def _on_thread(work: Callable[[], T]) -> "asyncio.Future[T]":
    """Do `work` on a thread of its own: those of asyncio are few and everybody's, so a slow folder would stop whatever
    else needs one. One that hangs does not keep the process from ending."""
    done: futures.Future[T] = futures.Future()
    # So that nobody who waits can cancel it.
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, name="chunk-store", daemon=True).start()
    return asyncio.wrap_future(done)


@contextmanager
def _failures_said() -> Iterator[None]:
    """Turn what the folder's system says into DEPENDENCY_UNAVAILABLE, but for a file that is not there."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        log.exception("chunk_store_failed", error=type(error).__name__)
        raise unavailable(NAME, _PROBLEMS.get(error.errno or 0, "")) from error


def _hangs() -> InferplaneError:
    log.error("chunk_store_hangs")
    return unavailable(NAME, "does not answer")


def _check_room(folder: Path, size: int) -> None:
    """Raises OSError unless LEAST_ROOM stays free when `size` bytes are written."""
    if shutil.disk_usage(folder).free - size < LEAST_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _probe(folder: Path, writes: bool) -> None:
    """Raises OSError unless the folder can be read or, where `writes`, written and has room for what is on its way."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    if not writes:
        return
    _check_room(folder, 0)
    probe = folder / f".probe.{secrets.token_hex(8)}"
    try:
        with probe.open("xb") as file:
            file.write(b"probe")
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def _prepare(folder: Path) -> None:
    """Make all shards now: a chunk must not be acknowledged in a folder that itself is not on disk yet."""
    _make_folder(folder)
    for shard in _SHARDS:
        (folder / shard).mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder)
    abandoned = time.time() - STALE_SECONDS
    for scratch in folder.glob(f"*/*{_SCRATCH_SUFFIX}"):
        # Another worker may be writing or cleaning up at this moment.
        try:
            if scratch.stat().st_mtime < abandoned:
                scratch.unlink()
        except FileNotFoundError:
            continue


def _make_folder(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        sync_folder(path.parent)
    # Also where another process made it: that one may not have come to this line yet.
    sync_folder(folder.parent)


def _write(path: Path, data: ChunkBytes, taking_room: threading.Lock) -> None:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SCRATCH_SUFFIX}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            # One after the other, so that the next one sees what this one takes before it is written.
            with taking_room:
                _check_room(path.parent, len(data))
                if data:
                    os.posix_fallocate(descriptor, 0, len(data))
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(descriptor)
        scratch.rename(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
