"""Ways to call the artifact service of a mesh as its administrator."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc

from inferplane.artifact.v1 import artifact_service_pb2 as pb
from inferplane.artifact.v1 import model_registry_service_pb2 as registry_pb
from inferplane.artifact.v1.artifact_service_pb2_grpc import ArtifactServiceStub
from inferplane.artifact.v1.model_pb2 import ModelVersion
from inferplane.artifact.v1.model_registry_service_pb2_grpc import ModelRegistryServiceStub
from inferplane.server.settings import ServiceName
from tests.support.mesh import Mesh, Metadata, error_info
from tests.support.onnx_models import identity

MIB = 1 << 20
CHUNK = 16 * MIB
MODEL_BYTES = identity("INT64", ["N"]).SerializeToString()
"""A model whose output `y` may hold classes."""


def bytes_of(size: int, seed: int = 0) -> bytes:
    """Bytes that do not repeat."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - not for secrets


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def new_upload(model: str = "digits") -> str:
    return f"models/{model}/uploads/{uuid4()}"


def finish(data: bytes, **changes: Any) -> pb.WriteArtifactRequest.FinishWrite:
    return pb.WriteArtifactRequest.FinishWrite(**{"size": len(data), "digest": digest(data), **changes})


def data_messages(upload: str, data: bytes, start: int = 0, size: int = MIB) -> list[pb.WriteArtifactRequest]:
    """The bytes from `start` on."""
    return [
        pb.WriteArtifactRequest(upload=upload, write_offset=at, data=data[at : at + size])
        for at in range(start, len(data), size)
    ]


def messages(upload: str, data: bytes, start: int = 0) -> list[pb.WriteArtifactRequest]:
    """The bytes from `start` on, then what they must be."""
    last = pb.WriteArtifactRequest(upload=upload, write_offset=len(data), finish=finish(data))
    return [*data_messages(upload, data, start), last]


class Artifacts:
    """The two stubs and what tests do with them again and again."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self.metadata = metadata
        self.bytes: Any = ArtifactServiceStub(channel)
        self.registry: Any = ModelRegistryServiceStub(channel)

    @classmethod
    async def of(cls, mesh: Mesh) -> "Artifacts":
        return cls(mesh.channels[ServiceName.ARTIFACT], await mesh.login())

    def write(self, *requests: pb.WriteArtifactRequest, ends: bool = True) -> Any:
        """A stream of `requests`; without `ends` the client then waits for the service to end it."""

        async def feed() -> AsyncIterator[pb.WriteArtifactRequest]:
            for request in requests:
                yield request
            if not ends:
                await asyncio.Event().wait()

        return self.bytes.WriteArtifact(feed(), metadata=self.metadata)

    def status(self, upload: str) -> Any:
        return self.bytes.GetWriteStatus(pb.GetWriteStatusRequest(upload=upload), metadata=self.metadata)

    def call(self, method: str, request: Any) -> Any:
        """A unary call of the registry."""
        return getattr(self.registry, method)(request, metadata=self.metadata)

    async def model(self, name: str = "digits", **fields: str) -> Any:
        return await self.call("CreateModel", registry_pb.CreateModelRequest(model_id=name, **fields))

    async def push(self, data: bytes = MODEL_BYTES, model: str = "digits") -> str:
        """Upload; the upload's name."""
        upload = new_upload(model)
        answer = await self.write(*messages(upload, data))
        assert answer.upload.complete
        return upload

    def create_version(self, upload: str, **fields: str) -> Any:
        parent = upload.partition("/uploads/")[0]
        request = registry_pb.CreateModelVersionRequest(parent=parent, upload=upload, **fields)
        return self.call("CreateModelVersion", request)

    async def version(self, model: str = "digits") -> ModelVersion:
        """Publish MODEL_BYTES."""
        version: ModelVersion = await self.create_version(await self.push(model=model))
        return version

    def read(self, version: str, **bounds: int) -> Any:
        return self.bytes.ReadArtifact(
            pb.ReadArtifactRequest(model_version=version, **bounds),
            metadata=self.metadata,
        )


async def until_committed(artifacts: Artifacts, upload: str, size: int) -> None:
    """Wait until the upload is there and has `size` durable bytes."""
    async with asyncio.timeout(20):
        while await _committed(artifacts, upload) < size:  # noqa: ASYNC110 - the service may be another process
            await asyncio.sleep(0.01)


async def _committed(artifacts: Artifacts, upload: str) -> int:
    try:
        return int((await artifacts.status(upload)).committed_size)
    except grpc.aio.AioRpcError as error:
        if error_info(error).reason != "UPLOAD_NOT_FOUND":
            raise
        return -1
