"""What is removed of uploads that nobody goes on with, and what is not."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact import uploads as uploads_module
from inferplane.server.artifact.chunk_store import ChunkBytes, chunk_digest
from inferplane.server.artifact.local_chunk_store import LocalChunkStore
from inferplane.server.artifact.registry import Inspected, NewVersion, Registry
from inferplane.server.artifact.repository import RegistryRepository
from inferplane.server.artifact.uploads import Uploads
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now
from inferplane.server.names import UploadName
from inferplane.server.settings import Settings
from inferplane.server.tensors import Signature
from tests.support.artifact import bytes_of
from tests.support.database import rows
from tests.support.uploads import ACTOR, CHUNK_SIZE, MAX_SIZE, Bench, BrokenError, new_name, on_bench, pieces


def ages(database_url: URL, upload_age: timedelta, chunk_age: timedelta) -> None:
    """Let all rows be so old."""
    asyncio.run(rows(database_url, "UPDATE artifact.upload SET active_at = $1", now() - upload_age))
    asyncio.run(rows(database_url, "UPDATE artifact.chunk SET written_at = $1", now() - chunk_age))


OLD = uploads_module.STALE_AFTER + timedelta(minutes=1)


def files(settings: Settings) -> list[Path]:
    return [path for path in (settings.data_dir / "blobs").glob("*/*") if path.is_file()]


async def inspected(bench: Bench, name: UploadName) -> Inspected:
    """The upload, as if its file had been looked into."""
    return Inspected(await bench.uploads.status(name), Signature((), ()))


async def publish(bench: Bench, name: UploadName) -> None:
    """Make the upload a version."""
    new = NewVersion(name, "", ACTOR.subject)
    async with bench.units_of_work(ACTOR) as unit:
        await Registry().create_version(RegistryRepository(unit), new, await inspected(bench, name))
        await unit.commit()


def test_old_uploads_that_are_no_version_are_forgotten_and_their_chunks_with_them(
    settings: Settings, database_url: URL
) -> None:
    stale, unused, used, data = new_name(), new_name(), new_name(), bytes_of(20)

    async def write(bench: Bench) -> None:
        with pytest.raises(BrokenError):
            await bench.uploads.write(pieces(stale, bytes_of(16, seed=5), 0, [16], broken=True), ACTOR)
        await bench.uploads.write(pieces(unused, bytes_of(8, seed=6), 0, [], broken=False), ACTOR)
        await bench.uploads.write(pieces(used, data, 0, [], broken=False), ACTOR)
        await publish(bench, used)

    async def clean_up(bench: Bench) -> None:
        await bench.uploads.clean_up()
        assert await bench.store.find(stale) is None
        assert await bench.store.find(unused) is None
        assert await bench.content(used) == data

    on_bench(settings, write)
    assert len(files(settings)) == 6
    ages(database_url, OLD, OLD)
    on_bench(settings, clean_up)
    assert len(files(settings)) == 3
    assert asyncio.run(rows(database_url, "SELECT count(*) FROM artifact.chunk")) == [(3,)]


def test_an_old_upload_that_becomes_a_version_is_not_forgotten_meanwhile(settings: Settings, database_url: URL) -> None:
    name, data = new_name(), bytes_of(8)

    async def write(bench: Bench) -> None:
        await bench.uploads.write(pieces(name, data, 0, [], broken=False), ACTOR)

    async def race(bench: Bench) -> None:
        new = NewVersion(name, "", ACTOR.subject)
        async with bench.units_of_work(ACTOR) as unit:
            await Registry().create_version(RegistryRepository(unit), new, await inspected(bench, name))
            forgetting = asyncio.create_task(bench.uploads.clean_up())
            await until_blocked(database_url)
            await unit.commit()
        await forgetting
        assert await bench.content(name) == data

    on_bench(settings, write)
    ages(database_url, OLD, timedelta())
    on_bench(settings, race)


def test_a_chunk_that_cannot_be_removed_keeps_no_other(settings: Settings, database_url: URL) -> None:
    datas = [bytes_of(CHUNK_SIZE, seed) for seed in range(4)]
    kept = sorted(map(chunk_digest, datas))[:2]

    class Stubborn(LocalChunkStore):
        async def delete(self, digest: str) -> None:
            if digest in kept:
                raise InferplaneError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, dependency="chunk store")
            await super().delete(digest)

    async def leave_garbage(bench: Bench) -> None:
        for data in datas:
            await bench.store.announce(chunk_digest(data))
            await bench.chunks.put(chunk_digest(data), data)

    async def clean_up(bench: Bench) -> None:
        chunks = Stubborn(settings.data_dir / "blobs")
        await Uploads(bench.store, chunks, MAX_SIZE, CHUNK_SIZE).clean_up()

    on_bench(settings, leave_garbage)
    ages(database_url, OLD, OLD)
    on_bench(settings, clean_up)
    assert sorted(path.name for path in files(settings)) == kept
    assert asyncio.run(rows(database_url, "SELECT digest FROM artifact.chunk ORDER BY 1")) == [(d,) for d in kept]


def test_a_store_that_fails_is_not_asked_for_every_chunk(settings: Settings, database_url: URL) -> None:
    class Away(LocalChunkStore):
        tries = 0

        async def delete(self, digest: str) -> None:
            self.tries += 1
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, dependency="artifact store")

    async def leave_garbage(bench: Bench) -> None:
        for seed in range(uploads_module.STORE_IS_AWAY + 10):
            await bench.store.announce(chunk_digest(bytes_of(4, seed=seed)))

    async def clean_up(bench: Bench) -> None:
        away = Away(settings.data_dir / "blobs")
        await Uploads(bench.store, away, MAX_SIZE, CHUNK_SIZE).clean_up()
        assert away.tries == uploads_module.STORE_IS_AWAY

    on_bench(settings, leave_garbage)
    ages(database_url, OLD, OLD)
    on_bench(settings, clean_up)


def test_chunks_that_are_never_removed_do_not_keep_another_for_ever(settings: Settings, database_url: URL) -> None:
    good = chunk_digest(bytes_of(4, seed=1000))

    class Stubborn(LocalChunkStore):
        async def delete(self, digest: str) -> None:
            if digest != good:
                raise InferplaneError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, dependency="artifact store")

    async def leave_garbage(bench: Bench) -> None:
        for seed in range(uploads_module.STORE_IS_AWAY + 5):
            await bench.store.announce(chunk_digest(bytes_of(4, seed=seed)))
        await bench.store.announce(good)

    async def clean_up(bench: Bench) -> None:
        uploads = Uploads(bench.store, Stubborn(settings.data_dir / "blobs"), MAX_SIZE, CHUNK_SIZE)
        for _ in range(50):
            await uploads.clean_up()
            if good not in await bench.store.unused(now()):
                return
        pytest.fail("its turn never came")

    on_bench(settings, leave_garbage)
    ages(database_url, OLD, OLD)
    on_bench(settings, clean_up)


def test_what_is_not_old_stays(settings: Settings, database_url: URL) -> None:
    name = new_name()

    async def write(bench: Bench) -> None:
        with pytest.raises(BrokenError):
            await bench.uploads.write(pieces(name, bytes_of(16), 0, [16], broken=True), ACTOR)
        await bench.store.announce(chunk_digest(b"just written"))
        await bench.chunks.put(chunk_digest(b"just written"), b"just written")
        await bench.uploads.clean_up()
        assert await bench.content(name) == bytes_of(16)

    on_bench(settings, write)
    assert len(files(settings)) == 3


def test_a_chunk_that_is_written_while_it_is_collected_is_there_afterwards(
    settings: Settings, database_url: URL
) -> None:
    data = bytes_of(CHUNK_SIZE)
    collecting, go_on = asyncio.Event(), asyncio.Event()

    class SlowDelete(LocalChunkStore):
        async def delete(self, digest: str) -> None:
            collecting.set()
            await go_on.wait()
            await super().delete(digest)
            order.append("collected")

    order: list[str] = []

    class NotedPut(LocalChunkStore):
        async def put(self, digest: str, data: ChunkBytes) -> None:
            order.append("put")
            await super().put(digest, data)

    async def leave_garbage(bench: Bench) -> None:
        await bench.store.announce(chunk_digest(data))
        await bench.chunks.put(chunk_digest(data), data)

    async def work(bench: Bench) -> None:
        folder = settings.data_dir / "blobs"

        collector = asyncio.create_task(bench.store.collect(chunk_digest(data), now(), SlowDelete(folder)))
        await collecting.wait()
        name = new_name()
        uploads = Uploads(bench.store, NotedPut(folder), MAX_SIZE, CHUNK_SIZE)
        writer = asyncio.create_task(uploads.write(pieces(name, data, 0, [], broken=False), ACTOR))
        await until_blocked(database_url)
        go_on.set()
        await asyncio.gather(collector, writer)
        assert order == ["collected", "put"]
        assert await bench.content(name) == data

    on_bench(settings, leave_garbage)
    ages(database_url, OLD, OLD)
    on_bench(settings, work)


async def until_blocked(database_url: URL) -> None:
    """Wait until somebody waits for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while await rows(database_url, query) == [(0,)]:  # noqa: ASYNC110 - the database cannot tell
            await asyncio.sleep(0.01)
