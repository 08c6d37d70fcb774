"""Uploads on PostgreSQL with small chunks: resuming, racing, and cleaning up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import URL

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact import uploads as uploads_module
from inferplane.server.artifact.blobs import Blob, stream, total_size, whole_digest
from inferplane.server.artifact.chunk_store import ChunkBytes, chunk_digest
from inferplane.server.artifact.local_chunk_store import LocalChunkStore
from inferplane.server.artifact.registry import Inspected, NewVersion, Registry
from inferplane.server.artifact.repository import RegistryRepository
from inferplane.server.artifact.upload_repository import UploadRepository
from inferplane.server.artifact.uploads import Finish, Piece, Upload, Uploads
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now
from inferplane.server.keys import MasterKey
from inferplane.server.names import UploadName
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory
from inferplane.server.tensors import Signature
from tests.support.artifact import bytes_of, digest
from tests.support.database import rows

T = TypeVar("T")

ACTOR = Actor("users/test")
CHUNK_SIZE = 8
MAX_SIZE = 64


@dataclass
class Bench:
    """Uploads without a server around them."""

    uploads: Uploads
    store: UploadRepository
    chunks: LocalChunkStore
    units_of_work: UnitOfWorkFactory

    async def content(self, name: UploadName) -> bytes:
        manifest = await self.store.manifest(name)
        blob = Blob(manifest, total_size(manifest), await whole_digest(self.chunks, manifest))
        async with aclosing(stream(self.chunks, blob)) as contents:
            return b"".join([content async for content in contents])


def on_bench(settings: Settings, work: Callable[[Bench], Awaitable[T]]) -> T:
    """Run `work` in a loop of its own, with the model `digits` there."""

    async def run() -> T:
        database = Database(settings, ServiceName.ARTIFACT)
        try:
            units_of_work = UnitOfWorkFactory(database, MasterKey.load(settings.master_key_path))
            async with units_of_work(ACTOR) as unit:
                try:
                    await Registry().create_model(RegistryRepository(unit), "digits", "", ACTOR.subject)
                    await unit.commit()
                except InferplaneError as error:
                    assert error.reason == ErrorReason.ERROR_REASON_MODEL_EXISTS  # noqa: PT017 - either is good
            chunks = await LocalChunkStore.open(settings.data_dir / "blobs")
            store = UploadRepository(database, units_of_work)
            return await work(Bench(Uploads(store, chunks, MAX_SIZE, CHUNK_SIZE), store, chunks, units_of_work))
        finally:
            await database.close()

    return asyncio.run(run())


def new_name() -> UploadName:
    return UploadName("digits", str(uuid4()))


class BrokenError(Exception):
    """The client went away."""


async def pieces(
    name: UploadName, data: bytes, start: int, sizes: list[int], *, broken: bool, declared: bytes | None = None
) -> AsyncIterator[Piece]:
    """`data` from `start` on in pieces of `sizes`; if not `broken` also the rest, finished as what is `declared`."""
    position = start
    for size in sizes:
        yield Piece(name, position, data[position : position + size])
        position = min(position + size, max(len(data), start))
    if broken:
        raise BrokenError
    whole = data if declared is None else declared
    yield Piece(name, position, data[position:], Finish(len(whole), digest(whole)))


@dataclass(frozen=True)
class Attempt:
    """One stream: where it begins, relative to where it should, and the sizes of its pieces."""

    shift: int
    sizes: list[int]
    broken: bool
    wrong_bytes: bool


ATTEMPTS = st.lists(
    st.builds(
        Attempt,
        shift=st.sampled_from([0, 0, 0, 0, -CHUNK_SIZE, -1, 1, CHUNK_SIZE]),
        sizes=st.lists(st.integers(0, 20), max_size=5),
        broken=st.booleans(),
        wrong_bytes=st.sampled_from([False, False, False, True]),
    ),
    max_size=6,
)


async def make(bench: Bench, name: UploadName, data: bytes, attempt: Attempt) -> None:
    """Make one attempt, and check what it leaves."""
    before = await bench.store.find(name)
    start = max((before.committed_size if before else 0) + attempt.shift, 0)
    # Were these committed and taken for good, the upload would not hold `data`.
    sent = bytes(byte ^ 0xFF for byte in data) if attempt.wrong_bytes else data
    feed = pieces(name, sent, start, attempt.sizes, broken=attempt.broken, declared=data)
    try:
        assert (await bench.uploads.write(feed, ACTOR)).complete
    except (InferplaneError, BrokenError):
        after = await bench.store.find(name)
        if before is not None and before.complete:
            assert after == before
        assert len(await bench.content(name)) == (after.committed_size if after else 0)
    else:
        assert await bench.content(name) == data


async def finish_well(bench: Bench, name: UploadName, data: bytes) -> None:
    """A client that means well gets there, at the latest after the wrong bytes of others were discarded."""
    for _ in range(2):
        stored = await bench.store.find(name)
        feed = pieces(name, data, stored.committed_size if stored else 0, [], broken=False)
        try:
            await bench.uploads.write(feed, ACTOR)
            break
        except InferplaneError as error:
            assert error.reason == ErrorReason.ERROR_REASON_DIGEST_MISMATCH  # noqa: PT017 - see above
    assert await bench.content(name) == data


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(size=st.integers(0, MAX_SIZE), attempts=ATTEMPTS)
def test_whatever_breaks_the_bytes_are_the_original_or_the_write_is_refused(
    settings: Settings, size: int, attempts: list[Attempt]
) -> None:
    data, name = bytes_of(size), new_name()

    async def work(bench: Bench) -> None:
        for attempt in attempts:
            await make(bench, name, data, attempt)
        await finish_well(bench, name, data)

    on_bench(settings, work)


def test_of_streams_that_race_at_least_one_ends_well_and_no_bytes_mix(settings: Settings) -> None:
    async def race(bench: Bench, name: UploadName, contents: list[bytes]) -> list[Upload | BaseException]:
        writes = [bench.uploads.write(pieces(name, data, 0, [3] * 20, broken=False), ACTOR) for data in contents]
        return await asyncio.gather(*writes, return_exceptions=True)

    async def work(bench: Bench) -> None:
        for round_ in range(10):
            name, contents = new_name(), [bytes_of(60, seed=10 * round_ + number) for number in range(3)]
            outcomes = await race(bench, name, contents)
            whole = [outcome for outcome in outcomes if isinstance(outcome, Upload)]
            refusals = {outcome.reason for outcome in outcomes if isinstance(outcome, InferplaneError)}
            assert len(whole) <= 1
            assert refusals <= {
                ErrorReason.ERROR_REASON_UPLOAD_BUSY,
                ErrorReason.ERROR_REASON_WRITE_OFFSET_MISMATCH,
                ErrorReason.ERROR_REASON_UPLOAD_NOT_OPEN,
            }
            assert len(whole) + sum(isinstance(outcome, InferplaneError) for outcome in outcomes) == 3
            if whole:
                winner = contents[outcomes.index(whole[0])]
                assert await bench.content(name) == winner

    on_bench(settings, work)


@pytest.mark.parametrize("broken", [True, False])
def test_a_stream_that_was_overtaken_commits_nothing(settings: Settings, broken: bool) -> None:
    name, slow, fast = new_name(), bytes_of(8, seed=1), bytes_of(8, seed=2)

    async def work(bench: Bench) -> None:
        async def overtaken() -> AsyncIterator[Piece]:
            yield Piece(name, 0, slow[:4])
            with contextlib.suppress(BrokenError):
                await bench.uploads.write(pieces(name, fast, 0, [8], broken=broken), ACTOR)
            yield Piece(name, 4, slow[4:])

        with pytest.raises(InferplaneError) as caught:
            await bench.uploads.write(overtaken(), ACTOR)
        assert caught.value.reason == ErrorReason.ERROR_REASON_UPLOAD_BUSY
        assert await bench.content(name) == fast

    on_bench(settings, work)


def test_a_stream_never_goes_on_with_an_upload_begun_anew(settings: Settings) -> None:
    """The upload that a stream saw is discarded and begun again by another, to the very same size."""
    name, old, new = new_name(), bytes_of(24, seed=1), bytes_of(24, seed=2)

    async def work(bench: Bench) -> None:
        paused, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[Piece]:
            yield Piece(name, 0, old[:8])
            paused.set()
            await go_on.wait()
            yield Piece(name, 8, old[8:], Finish(24, digest(old)))

        task = asyncio.create_task(bench.uploads.write(slow(), ACTOR))
        await paused.wait()
        with pytest.raises(InferplaneError):
            await bench.uploads.write(pieces(name, new, 8, [], broken=False), ACTOR)
        with pytest.raises(BrokenError):
            await bench.uploads.write(pieces(name, new, 0, [8], broken=True), ACTOR)
        go_on.set()
        with pytest.raises(InferplaneError) as caught:
            await task
        assert caught.value.reason == ErrorReason.ERROR_REASON_UPLOAD_BUSY
        assert (await bench.uploads.write(pieces(name, new, 8, [], broken=False), ACTOR)).complete

    on_bench(settings, work)


def test_a_cancelled_write_leaves_what_was_committed_and_no_temporary_file(settings: Settings) -> None:
    name, data = new_name(), bytes_of(40)

    async def work(bench: Bench) -> None:
        async def endless() -> AsyncIterator[Piece]:
            yield Piece(name, 0, data[:20])
            fed.set()
            await asyncio.Event().wait()

        fed = asyncio.Event()
        task = asyncio.create_task(bench.uploads.write(endless(), ACTOR))
        await fed.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await bench.content(name) == data[:16]
        assert not list((settings.data_dir / "blobs").glob("*/*.tmp"))

    on_bench(settings, work)


def ages(settings: Settings, database_url: URL, upload_age: timedelta, chunk_age: timedelta) -> None:
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
    ages(settings, database_url, OLD, OLD)
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
    ages(settings, database_url, OLD, timedelta())
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
        # In the order in which they are found again.
        for data in sorted(datas, key=chunk_digest):
            await bench.store.announce(chunk_digest(data))
            await bench.chunks.put(chunk_digest(data), data)

    async def clean_up(bench: Bench) -> None:
        chunks = Stubborn(settings.data_dir / "blobs")
        await Uploads(bench.store, chunks, MAX_SIZE, CHUNK_SIZE).clean_up()

    on_bench(settings, leave_garbage)
    ages(settings, database_url, OLD, OLD)
    on_bench(settings, clean_up)
    assert sorted(path.name for path in files(settings)) == kept
    assert asyncio.run(rows(database_url, "SELECT digest FROM artifact.chunk ORDER BY 1")) == [(d,) for d in kept]


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
    ages(settings, database_url, OLD, OLD)
    on_bench(settings, work)


async def until_blocked(database_url: URL) -> None:
    """Wait until somebody waits for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while await rows(database_url, query) == [(0,)]:  # noqa: ASYNC110 - the database cannot tell
            await asyncio.sleep(0.01)
