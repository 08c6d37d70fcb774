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
from inferplane.server.artifact.blobs import BlobReader, Chunk
from inferplane.server.artifact.chunk_store import Slots, chunk_digest
from inferplane.server.artifact.object_chunk_store import ObjectChunkStore
from inferplane.server.errors import InferplaneError


async def stored(contents: Sequence[bytes]) -> tuple[BlobReader, list[Chunk]]:
    store = ObjectChunkStore(MemoryStore())
    for content in contents:
        await store.put(chunk_digest(content), content)
    return BlobReader(store, readers=1), [Chunk(chunk_digest(content), len(content)) for content in contents]


@hypothesis_settings(deadline=None)
@given(contents=st.lists(st.binary(min_size=1, max_size=9), max_size=5), data=st.data())
async def test_every_range_is_exact(contents: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(contents)
    offset = data.draw(st.integers(0, len(whole)))
    limit = data.draw(st.integers(0, len(whole) + 2))
    reader, manifest = await stored(contents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs, "PIECE_SIZE", 4)
        pieces = [piece async for piece in reader.read(manifest, offset, limit)]
    assert b"".join(content for _, content in pieces) == whole[offset : offset + limit if limit else None]
    position = offset
    for at, content in pieces:
        assert (at, 0 < len(content) <= 4) == (position, True)
        position += len(content)


async def test_a_reader_that_goes_away_frees_its_place() -> None:
    reader, manifest = await stored([b"abc", b"def"])
    for _ in range(3):
        async with aclosing(reader.read(manifest, 0, 0)) as pieces:
            assert await anext(pieces) == (0, b"abc")


async def test_who_finds_no_place_in_time_is_told_to_come_back() -> None:
    slots = Slots(1, wait=0.01)
    async with slots.taken():
        with pytest.raises(InferplaneError) as caught:
            await slots.taken().__aenter__()
    assert caught.value.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    assert caught.value.retry_after
    async with slots.taken():
        pass
