"""Ranges of blobs, and the bound on memory."""

from collections.abc import Sequence
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact import blobs
from inferplane.server.artifact.blobs import Blob, BlobReader, Chunk, stream
from inferplane.server.artifact.chunk_store import chunk_digest
from inferplane.server.artifact.object_chunk_store import ObjectChunkStore
from inferplane.server.artifact.slots import Slots
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import Principal

ALICE, INFERENCE = Principal("users/alice"), Principal("workloads/inference")


async def stored(contents: Sequence[bytes]) -> tuple[BlobReader, Blob]:
    store = ObjectChunkStore(MemoryStore())
    for content in contents:
        await store.put(chunk_digest(content), content)
    whole = b"".join(contents)
    manifest = [Chunk(chunk_digest(content), len(content)) for content in contents]
    return BlobReader(store, Slots(1, 1)), Blob(manifest, len(whole), f"sha256:{chunk_digest(whole)}")


@hypothesis_settings(deadline=None)
@given(contents=st.lists(st.binary(min_size=1, max_size=9), max_size=5), data=st.data())
async def test_every_range_is_exact(contents: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(contents)
    offset = data.draw(st.integers(0, len(whole)))
    limit = data.draw(st.integers(0, len(whole) + 2))
    reader, blob = await stored(contents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs, "PIECE_SIZE", 4)
        pieces = [piece async for piece in reader.read(blob, offset, limit, ALICE)]
    assert b"".join(content for _, content in pieces) == whole[offset : offset + limit if limit else None]
    position = offset
    for at, content in pieces:
        assert (at, 0 < len(content) <= 4) == (position, True)
        position += len(content)


CONTENTS = [b"abc", b"defg", b"hij"]


def wrong(manifest: Sequence[Chunk], change: str) -> list[Chunk]:
    """The manifest with a mistake in it."""
    first, second, third = manifest
    changes = {
        "a chunk is missing": [first, second],
        "a chunk stands there twice": [first, second, third, third],
        "a chunk is said to be shorter, another longer": [Chunk(first.digest, 2), second, Chunk(third.digest, 4)],
        "two chunks are exchanged": [third, second, first],
        "a chunk stands in another's place": [first, second, first],
    }
    return changes[change]


COMPLETE_READS = [(0, 0), (0, 10), (0, 11)]


@pytest.mark.parametrize("bounds", COMPLETE_READS)
@pytest.mark.parametrize(
    "change",
    [
        "a chunk is missing",
        "a chunk stands there twice",
        "a chunk is said to be shorter, another longer",
        "two chunks are exchanged",
        "a chunk stands in another's place",
    ],
)
async def test_a_whole_read_by_a_wrong_manifest_never_ends_well(change: str, bounds: tuple[int, int]) -> None:
    reader, blob = await stored(CONTENTS)
    damaged = Blob(wrong(blob.manifest, change), blob.size, blob.digest)
    received: list[bytes] = []

    async def read() -> None:
        async for _, content in reader.read(damaged, *bounds, ALICE):
            received.append(content)

    with pytest.raises(InferplaneError) as caught:
        await read()
    assert caught.value.reason == ErrorReason.ERROR_REASON_BLOB_CORRUPT
    assert len(b"".join(received)) < blob.size


@pytest.mark.parametrize("change", ["a chunk is missing", "a chunk stands there twice"])
async def test_of_a_manifest_with_another_size_not_one_byte_is_sent(change: str) -> None:
    reader, blob = await stored(CONTENTS)
    damaged = Blob(wrong(blob.manifest, change), blob.size, blob.digest)
    with pytest.raises(InferplaneError) as caught:
        await anext(reader.read(damaged, 1, 1, ALICE))
    assert caught.value.reason == ErrorReason.ERROR_REASON_BLOB_CORRUPT


async def test_a_range_of_a_chunk_with_another_size_is_never_sent() -> None:
    reader, blob = await stored(CONTENTS)
    damaged = Blob(wrong(blob.manifest, "a chunk is said to be shorter, another longer"), blob.size, blob.digest)
    with pytest.raises(InferplaneError) as caught:
        await anext(reader.read(damaged, 1, 1, ALICE))
    assert caught.value.reason == ErrorReason.ERROR_REASON_BLOB_CORRUPT


async def test_an_empty_blob_of_another_digest_is_corrupt() -> None:
    _, blob = await stored([])
    assert [content async for content in stream(ObjectChunkStore(MemoryStore()), blob)] == []
    with pytest.raises(InferplaneError):
        await anext(stream(ObjectChunkStore(MemoryStore()), Blob([], 0, "sha256:" + "0" * 64)))


async def test_a_reader_that_goes_away_frees_its_place() -> None:
    reader, blob = await stored([b"abc", b"def"])
    for _ in range(3):
        async with aclosing(reader.read(blob, 0, 0, ALICE)) as pieces:
            assert await anext(pieces) == (0, b"abc")


async def test_workloads_have_places_of_their_own() -> None:
    reader, blob = await stored([b"abc"])
    async with aclosing(reader.read(blob, 0, 0, ALICE)) as pieces:
        await anext(pieces)
        assert [content async for _, content in reader.read(blob, 0, 0, INFERENCE)] == [b"abc"]


async def test_who_finds_no_place_in_time_is_told_to_come_back() -> None:
    slots = Slots(1, 1, wait=0.01)
    async with slots.taken("users/alice"):
        with pytest.raises(InferplaneError) as caught:
            await slots.taken("users/bob").__aenter__()
    assert caught.value.reason == ErrorReason.ERROR_REASON_OVERLOADED
    assert caught.value.retry_after
    async with slots.taken("users/bob"):
        pass


async def test_one_caller_takes_a_fraction_of_the_places() -> None:
    slots = Slots(2, 1, wait=0.01)
    async with slots.taken("users/alice"):
        with pytest.raises(InferplaneError):
            await slots.taken("users/alice").__aenter__()
        async with slots.taken("users/bob"):
            pass
