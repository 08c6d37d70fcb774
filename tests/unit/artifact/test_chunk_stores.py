"""One contract for all chunk stores, and what is particular to each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError, NotSupportedError
from obstore.store import LocalStore, MemoryStore

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact import local_chunk_store
from inferplane.server.artifact.chunk_store import ChunkStore, chunk_digest
from inferplane.server.artifact.local_chunk_store import LocalChunkStore
from inferplane.server.artifact.object_chunk_store import ObjectChunkStore
from inferplane.server.errors import InferplaneError

DATA = b"some bytes of a model"
DIGEST = chunk_digest(DATA)


class Damage:
    """Puts other bytes in a chunk's place, past the store."""

    def __init__(self, folder: Path, memory: MemoryStore | None = None) -> None:
        self.folder = folder
        self.memory = memory

    def write(self, digest: str, data: bytes) -> None:
        if self.memory is not None:
            self.memory.put(f"sha256/{digest}", data)
        else:
            next(self.folder.rglob(digest)).write_bytes(data)


@pytest.fixture(params=["local", "memory", "object in a folder"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[ChunkStore, Damage]]:
    if request.param == "local":
        yield await LocalChunkStore.open(tmp_path / "blobs"), Damage(tmp_path)
    elif request.param == "memory":
        memory = MemoryStore()
        yield ObjectChunkStore(memory), Damage(tmp_path, memory)
    else:
        yield ObjectChunkStore(LocalStore(str(tmp_path / "bucket"), mkdir=True)), Damage(tmp_path)


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


async def reason_of_read(store: ChunkStore) -> ErrorReason.ValueType:
    with pytest.raises(InferplaneError) as caught:
        await store.read(DIGEST)
    assert caught.value.metadata["chunk"] == DIGEST
    return caught.value.reason


@pytest.mark.parametrize("data", [b"", b"x", bytes(16 << 20)])
async def test_what_is_put_is_read(store: tuple[ChunkStore, Damage], data: bytes) -> None:
    chunks, _ = store
    await chunks.put(chunk_digest(data), bytearray(data))
    assert await chunks.read(chunk_digest(data)) == data


async def test_putting_again_changes_nothing(store: tuple[ChunkStore, Damage]) -> None:
    chunks, _ = store
    for _ in range(2):
        await chunks.put(DIGEST, DATA)
    assert await chunks.read(DIGEST) == DATA


async def test_a_chunk_exists_from_put_to_delete(store: tuple[ChunkStore, Damage]) -> None:
    chunks, _ = store
    assert not await chunks.exists(DIGEST)
    await chunks.put(DIGEST, DATA)
    assert await chunks.exists(DIGEST)
    await chunks.delete(DIGEST)
    assert not await chunks.exists(DIGEST)
    await chunks.delete(DIGEST)


async def test_a_chunk_that_is_lost_is_corrupt(store: tuple[ChunkStore, Damage]) -> None:
    chunks, _ = store
    assert await reason_of_read(chunks) == ErrorReason.ERROR_REASON_BLOB_CORRUPT


@pytest.mark.parametrize("damaged", [DATA[:-1], DATA + b"!", b"x" + DATA[1:], b""])
async def test_changed_bytes_are_never_given_out_and_putting_mends_them(
    store: tuple[ChunkStore, Damage], damaged: bytes
) -> None:
    chunks, damage = store
    await chunks.put(DIGEST, DATA)
    damage.write(DIGEST, damaged)
    assert await reason_of_read(chunks) == ErrorReason.ERROR_REASON_BLOB_CORRUPT
    await chunks.put(DIGEST, DATA)
    assert await chunks.read(DIGEST) == DATA


async def test_local_files_are_private_and_sharded(tmp_path: Path) -> None:
    chunks = await LocalChunkStore.open(tmp_path / "data" / "blobs")
    await chunks.put(DIGEST, DATA)
    path = tmp_path / "data" / "blobs" / DIGEST[:2] / DIGEST
    assert path.stat().st_mode & 0o777 == 0o600
    assert {folder.stat().st_mode & 0o777 for folder in list(path.parents)[:3]} == {0o700}
    assert [entry.name for entry in path.parent.iterdir()] == [DIGEST]


async def test_old_leftovers_of_a_crash_go_and_files_in_the_making_stay(tmp_path: Path) -> None:
    chunks = await LocalChunkStore.open(tmp_path)
    await chunks.put(DIGEST, DATA)
    old, fresh = tmp_path / "00" / ".a.1.tmp", tmp_path / "00" / ".b.2.tmp"
    for leftover in (old, fresh):
        leftover.write_bytes(b"half")
    past = time.time() - local_chunk_store.STALE_SECONDS - 1
    os.utime(old, (past, past))
    os.utime(tmp_path / DIGEST[:2] / DIGEST, (past, past))
    await LocalChunkStore.open(tmp_path)
    assert not old.exists()
    assert fresh.exists()
    assert await chunks.read(DIGEST) == DATA


async def test_a_full_disk_is_an_outage_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = await LocalChunkStore.open(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InferplaneError) as caught:
        await chunks.put(DIGEST, DATA)
    assert caught.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert not files(tmp_path)


WRITER = """
import asyncio, sys
from pathlib import Path
from inferplane.server.artifact.chunk_store import chunk_digest
from inferplane.server.artifact.local_chunk_store import LocalChunkStore

async def main():
    chunks = await LocalChunkStore.open(Path(sys.argv[1]))
    for number in range(100_000):
        data = number.to_bytes(4, "big") * 50_000
        digest = chunk_digest(data)
        await chunks.put(digest, data)
        print(digest, flush=True)

asyncio.run(main())
"""


def acknowledged_until_killed(folder: Path) -> list[str]:
    """The digests that a writing process acknowledged before it was killed."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().strip() for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    writer.stdout.close()
    return acknowledged


async def test_what_a_killed_process_acknowledged_is_there_and_nothing_is_half(tmp_path: Path) -> None:
    acknowledged = acknowledged_until_killed(tmp_path)
    chunks = await LocalChunkStore.open(tmp_path)
    whole = [name for name in files(tmp_path) if not name.startswith(".")]
    assert set(acknowledged) <= set(whole)
    assert len(whole) <= len(acknowledged) + 1
    for digest in whole:
        await chunks.read(digest)


async def test_a_chunk_is_synced_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = await LocalChunkStore.open(tmp_path)
    target = tmp_path / DIGEST[:2] / DIGEST
    seen: list[tuple[str, bool]] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        sync(descriptor)
        synced = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append(("folder" if synced == target.parent else "file", target.exists()))

    monkeypatch.setattr(os, "fsync", watched)
    await chunks.put(DIGEST, DATA)
    assert seen == [("file", False), ("folder", True)]


async def test_a_store_without_conditional_writes_is_written_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = obstore.put_async

    async def put(store: MemoryStore, path: str, data: bytes, **options: object) -> object:
        if options.pop("mode", None) == "create":
            raise NotSupportedError("no conditions here")
        return await plain(store, path, data)

    monkeypatch.setattr(obstore, "put_async", put)
    chunks = ObjectChunkStore(MemoryStore())
    await chunks.put(DIGEST, DATA)
    assert await chunks.read(DIGEST) == DATA


async def test_an_object_store_that_does_not_answer_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise GenericError("connection refused by 10.0.0.1")

    monkeypatch.setattr(obstore, "get_async", fail)
    with pytest.raises(InferplaneError) as caught:
        await ObjectChunkStore(MemoryStore()).read(DIGEST)
    assert caught.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert caught.value.metadata == {"dependency": "object store"}


@pytest.mark.parametrize("url", ["memory:///", "s3://bucket/prefix"])
def test_a_store_is_opened_by_its_url(url: str) -> None:
    ObjectChunkStore.from_url(url)
