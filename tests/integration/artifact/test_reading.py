"""ReadArtifact."""

from typing import Any

import grpc
import pytest
from sqlalchemy import URL

from inferplane.artifact.v1 import model_registry_service_pb2 as registry_pb
from inferplane.artifact.v1.model_pb2 import ModelVersion
from inferplane.server.identity.workloads import WorkloadSigner
from inferplane.server.settings import ServiceName, Settings
from tests.conftest import execute
from tests.support.artifact import CHUNK, MIB, Artifacts, bytes_of
from tests.support.mesh import Mesh, failure, reason
from tests.support.onnx_models import identity

OUT_OF_RANGE = (grpc.StatusCode.OUT_OF_RANGE, "READ_OFFSET_OUT_OF_RANGE")


def large_model() -> bytes:
    """A valid model of two chunks."""
    proto = identity("INT64", ["N"])
    proto.doc_string = bytes_of((CHUNK + MIB + 7) // 2).hex()
    return proto.SerializeToString()


DATA = large_model()


@pytest.fixture
async def version(artifacts: Artifacts) -> Any:
    return await artifacts.create_version(await artifacts.push(DATA))


async def collect(call: Any) -> bytes:
    """The bytes of a read, whose positions must follow each other."""
    start, data = None, b""
    async for piece in call:
        start = piece.offset if start is None else start
        assert piece.offset == start + len(data)
        assert 0 < len(piece.data) <= MIB
        data += piece.data
    return data


@pytest.mark.parametrize(
    ("offset", "limit"),
    [
        (0, 0),
        (0, 1),
        (5, MIB),
        (CHUNK - 1, 2),
        (CHUNK, 0),
        (CHUNK + 3, MIB + 5),
        (len(DATA) - 1, 0),
        (len(DATA) - 1, 100),
        (1, 1 << 62),
    ],
)
async def test_a_range_is_read_exactly(artifacts: Artifacts, version: ModelVersion, offset: int, limit: int) -> None:
    wanted = DATA[offset : offset + limit if limit else None]
    assert await collect(artifacts.read(version.name, offset=offset, limit=limit)) == wanted


async def test_a_read_at_the_end_gives_nothing(artifacts: Artifacts, version: ModelVersion) -> None:
    assert await collect(artifacts.read(version.name, offset=len(DATA))) == b""


async def test_a_read_past_the_end_is_refused(artifacts: Artifacts, version: ModelVersion) -> None:
    assert await reason(artifacts.read(version.name, offset=len(DATA) + 1)) == OUT_OF_RANGE


@pytest.mark.parametrize("bounds", [{"offset": -1}, {"limit": -1}])
async def test_negative_bounds_are_refused(artifacts: Artifacts, version: ModelVersion, bounds: dict[str, int]) -> None:
    call = artifacts.read(version.name, **bounds)
    assert await reason(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


@pytest.mark.parametrize("damage", ["changed", "shortened", "lost"])
async def test_damaged_bytes_are_never_sent(
    artifacts: Artifacts, version: ModelVersion, settings: Settings, damage: str
) -> None:
    """The first chunk is whole and read, of the second nothing."""
    small, _ = sorted((settings.data_dir / "blobs").glob("??/*"), key=lambda path: path.stat().st_size)
    content = small.read_bytes()
    if damage == "changed":
        small.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "shortened":
        small.write_bytes(content[:-1])
    else:
        small.unlink()
    received = bytearray()

    async def read() -> None:
        async for piece in artifacts.read(version.name):
            received.extend(piece.data)

    assert await reason(read()) == (grpc.StatusCode.DATA_LOSS, "BLOB_CORRUPT")
    assert received == DATA[:CHUNK]


WRONG_MANIFESTS = {
    "a chunk is gone": "DELETE FROM artifact.upload_chunk WHERE position = 1",
    "a size is wrong": "UPDATE artifact.upload_chunk SET size = size - 5 WHERE position = 1",
    "the version is longer": "UPDATE artifact.model_version SET size = size + 5",
    "the version is another": "UPDATE artifact.model_version SET digest = 'sha256:' || repeat('0', 64)",
}


@pytest.mark.parametrize("damage", WRONG_MANIFESTS)
async def test_by_a_wrong_manifest_a_read_of_everything_never_ends_well(
    artifacts: Artifacts, version: ModelVersion, database_url: URL, damage: str
) -> None:
    await execute(database_url, WRONG_MANIFESTS[damage])
    assert await reason(artifacts.read(version.name)) == (grpc.StatusCode.DATA_LOSS, "BLOB_CORRUPT")


async def test_an_unknown_version_is_refused(artifacts: Artifacts, version: ModelVersion) -> None:
    not_found = grpc.StatusCode.NOT_FOUND
    assert await reason(artifacts.read("models/digits/versions/2")) == (not_found, "MODEL_VERSION_NOT_FOUND")
    assert await reason(artifacts.read("models/nothing/versions/1")) == (not_found, "MODEL_NOT_FOUND")


async def test_a_viewer_may_not_read_bytes_and_inference_may(
    artifacts: Artifacts, version: ModelVersion, mesh: Mesh
) -> None:
    artifacts.metadata = await mesh.user("alice", viewer="*")
    error = await failure(artifacts.read(version.name))
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    signer = WorkloadSigner(mesh.settings.keys_dir, ServiceName.INFERENCE)
    artifacts.metadata = signer.metadata(ServiceName.ARTIFACT)
    assert await collect(artifacts.read(version.name)) == DATA
    request = registry_pb.GetModelVersionRequest(name=version.name)
    assert await artifacts.call("GetModelVersion", request) == version


def test_the_model_of_these_tests_has_two_chunks() -> None:
    assert CHUNK < len(DATA) < 2 * CHUNK
