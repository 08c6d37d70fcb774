"""What every store of chunks promises: a folder of ours, an object store in memory and in a folder, and real S3."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.chunk_store import ChunkStore, chunk_digest
from inferplane.server.artifact.local_chunk_store import LocalChunkStore
from inferplane.server.artifact.object_chunk_store import ObjectChunkStore
from inferplane.server.errors import InferplaneError
from tests.support.s3 import BUCKET, S3, s3_server

DATA = b"some bytes of a model"
DIGEST = chunk_digest(DATA)


class Damage:
    """Puts other bytes in a chunk's place, past the store."""

    def __init__(self, folder: Path, memory: MemoryStore | None = None, s3: tuple[S3, str] | None = None) -> None:
        self.folder = folder
        self.memory = memory
        self.s3 = s3

    def write(self, digest: str, data: bytes) -> None:
        if self.memory is not None:
            self.memory.put(f"sha256/{digest}", data)
        elif self.s3 is not None:
            server, prefix = self.s3
            server.put(f"{prefix}/sha256/{digest}", data)
        else:
            next(self.folder.rglob(digest)).write_bytes(data)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["local", "memory", "object in a folder", "s3"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[ChunkStore, Damage]]:
    if request.param == "local":
        yield await LocalChunkStore.open(tmp_path / "blobs"), Damage(tmp_path)
    elif request.param == "memory":
        memory = MemoryStore()
        yield ObjectChunkStore(memory), Damage(tmp_path, memory)
    elif request.param == "s3":
        server: S3 = request.getfixturevalue("s3")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield ObjectChunkStore.from_url(f"s3://{BUCKET}/{tmp_path.name}"), Damage(tmp_path, s3=(server, tmp_path.name))
    else:
        yield ObjectChunkStore(LocalStore(str(tmp_path / "bucket"), mkdir=True)), Damage(tmp_path)


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


async def test_a_store_that_works_says_so(store: tuple[ChunkStore, Damage]) -> None:
    chunks, _ = store
    await chunks.check(writes=False)
    await chunks.check(writes=True)
