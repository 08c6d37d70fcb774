"""What is particular to each chunk store; what they have in common stands in tests/contract/."""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError, NotSupportedError
from obstore.store import MemoryStore

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact import local_chunk_store, store_watch
from inferplane.server.artifact.chunk_store import chunk_digest
from inferplane.server.artifact.local_chunk_store import LocalChunkStore
from inferplane.server.artifact.object_chunk_store import ObjectChunkStore
from inferplane.server.artifact.store_watch import StoreWatch
from inferplane.server.errors import InferplaneError

DATA = b"some bytes of a model"
DIGEST = chunk_digest(DATA)


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


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


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "is full"), (errno.EROFS, "is read-only"), (errno.EACCES, "may not be used")]
)
async def test_an_error_of_the_folder_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    chunks = await LocalChunkStore.open(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(number, "a private text")

    monkeypatch.setattr(os, "fsync", fail)
    for call in (chunks.put(DIGEST, DATA), chunks.check(writes=True)):
        with pytest.raises(InferplaneError) as caught:
            await call
        assert caught.value.metadata["dependency"] == "chunk store"
        assert said in caught.value.metadata["detail"]
    await chunks.check(writes=False)


async def test_a_folder_with_little_room_takes_no_writes_and_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = await LocalChunkStore.open(tmp_path)
    monkeypatch.setattr(local_chunk_store, "LEAST_ROOM", 1 << 62)
    await chunks.check(writes=False)
    with pytest.raises(InferplaneError) as caught:
        await chunks.check(writes=True)
    assert "is full" in caught.value.metadata["detail"]


async def test_a_write_that_would_take_the_last_room_is_answered_as_by_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = await LocalChunkStore.open(tmp_path)
    monkeypatch.setattr(local_chunk_store, "LEAST_ROOM", shutil.disk_usage(tmp_path).free)
    with pytest.raises(InferplaneError) as caught:
        await chunks.put(DIGEST, bytes(64 << 20))
    assert caught.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert "is full" in caught.value.metadata["detail"]
    assert not files(tmp_path)


async def test_chunks_that_are_written_at_once_do_not_take_the_last_room_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1 << 20
    chunks = await LocalChunkStore.open(tmp_path)
    disk = local_chunk_store.LEAST_ROOM + 2 * size + size // 2
    all_looked = threading.Barrier(local_chunk_store.THREADS)

    def taken() -> int:
        while True:
            # One may be renamed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                present = [path for path in tmp_path.rglob("*") if not path.is_dir()]
                return sum(path.stat().st_blocks * 512 for path in present)

    def usage(_folder: Path) -> Any:
        free = disk - taken()
        # Whoever can look while others have looked and not written yet, does.
        with contextlib.suppress(threading.BrokenBarrierError):
            all_looked.wait(1)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    data = [bytes([number]) * size for number in range(local_chunk_store.THREADS)]
    outcomes = await asyncio.gather(*(chunks.put(chunk_digest(part), part) for part in data), return_exceptions=True)
    assert [outcome for outcome in outcomes if outcome is None] == [None, None]
    assert len(files(tmp_path)) == 2


async def test_a_folder_that_hangs_is_reported_and_takes_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = await LocalChunkStore.open(tmp_path)
    go_on, probe, looks = threading.Event(), local_chunk_store._probe, 0
    reported: dict[str, bool] = {}

    def hang(folder: Path, writes: bool) -> None:
        nonlocal looks
        looks += 1
        go_on.wait(60)
        probe(folder, writes)

    monkeypatch.setattr(local_chunk_store, "_probe", hang)
    monkeypatch.setattr(store_watch, "TIMEOUT", 0.05)
    watch = StoreWatch(chunks, reported.__setitem__)
    try:
        for _ in range(3):
            reported.clear()
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(watch.look())), 10)
            assert reported == {store_watch.READS: False, store_watch.WRITES: False}
        assert looks == 1
    finally:
        go_on.set()
    assert chunks._checking is not None
    await asyncio.wait_for(chunks._checking, 10)
    monkeypatch.setattr(store_watch, "TIMEOUT", 10.0)
    await watch.look()
    assert reported == {store_watch.READS: True, store_watch.WRITES: True}


async def test_a_start_on_a_folder_that_hangs_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(local_chunk_store, "_prepare", lambda _: go_on.wait(60))
    monkeypatch.setattr(local_chunk_store, "START_TIMEOUT", 0.05)
    try:
        with pytest.raises(InferplaneError) as caught:
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(LocalChunkStore.open(tmp_path))), 10)
    finally:
        go_on.set()
    assert "does not answer" in caught.value.metadata["detail"]


async def test_slow_writes_leave_threads_to_others_and_take_no_more_than_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    chunks = await LocalChunkStore.open(tmp_path)
    go_on, full = threading.Event(), threading.Event()
    write, writing, most = local_chunk_store._write, 0, 0

    def slow(path: Path, data: bytes, taking_room: threading.Lock) -> None:
        nonlocal writing, most
        writing += 1
        most = max(most, writing)
        if writing == local_chunk_store.THREADS:
            full.set()
        go_on.wait(60)
        write(path, data, taking_room)
        writing -= 1

    monkeypatch.setattr(local_chunk_store, "_write", slow)
    datas = [bytes([number]) for number in range(2 * local_chunk_store.THREADS)]
    puts = [asyncio.ensure_future(chunks.put(chunk_digest(data), data)) for data in datas]
    try:
        assert await asyncio.wait_for(asyncio.to_thread(full.wait, 5), 10)
    finally:
        go_on.set()
    await asyncio.gather(*puts)
    assert most == local_chunk_store.THREADS


async def test_a_folder_that_is_gone_is_an_outage(tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    chunks = await LocalChunkStore.open(folder)
    shutil.rmtree(folder)
    for call in (chunks.put(DIGEST, DATA), chunks.check(writes=False)):
        with pytest.raises(InferplaneError) as caught:
            await call
        assert caught.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    async def look() -> None:
        await (await LocalChunkStore.open(tmp_path)).check(writes=True)

    asyncio.run(look())
    assert not files(tmp_path)
