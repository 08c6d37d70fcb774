"""Uploads on PostgreSQL with small chunks: resuming and racing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.uploads import Finish, Piece, Upload
from inferplane.server.errors import InferplaneError
from inferplane.server.names import UploadName
from inferplane.server.settings import Settings
from tests.support.artifact import bytes_of, digest
from tests.support.uploads import ACTOR, CHUNK_SIZE, MAX_SIZE, Bench, BrokenError, new_name, on_bench, pieces


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
