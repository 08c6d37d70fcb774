"""Models, their versions and aliases, and their bytes."""

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from inferplane.artifact.v1 import (
    artifact_service_pb2_grpc,
    model_registry_service_pb2,
    model_registry_service_pb2_grpc,
)
from inferplane.artifact.v1.model_pb2 import Model, ModelAlias, ModelVersion
from inferplane.client.calls import Backoff, new_key, unary, walk
from inferplane.client.errors import (
    AlreadyExists,
    FailedPrecondition,
    InferplaneClientError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from inferplane.client.names import ModelRef, alias_id, model_id, version_id
from inferplane.client.transfer import Download, LocalFile, Progress, Upload

# The service reads and checks the whole model before it answers.
_CREATE_VERSION_TIMEOUT = 300.0
_REFUSALS = {"ARTIFACT_TOO_LARGE", "INVALID_FIELD", "MODEL_FORMAT_INVALID", "MODEL_UNSUPPORTED"}
"""Why a file can never become a version."""


async def newest_version(
    registry: model_registry_service_pb2_grpc.ModelRegistryServiceStub,
    model: str,
    timeout: float | None = None,
) -> ModelVersion:
    """Give the newest version of `models/{model}`; raises NotFound where there is none yet."""
    request = model_registry_service_pb2.ListModelVersionsRequest(parent=model, page_size=1)
    page = await unary(registry.ListModelVersions, request, timeout)
    if not page.model_versions:
        raise NotFound(f"{model} has no versions yet", reason="MODEL_VERSION_NOT_FOUND")
    return page.model_versions[0]


class ArtifactClient:
    """The artifact service; `registry` and `bytes` are the generated stubs.

    Every method raises InferplaneClientError; `timeout` is in seconds, None for the client's default.
    """

    def __init__(self, channel: grpc.aio.Channel, backoff: Backoff | None = None) -> None:
        self.registry = model_registry_service_pb2_grpc.ModelRegistryServiceStub(channel)
        self.bytes = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
        self._backoff = backoff or Backoff()

    async def create_model(self, name: str, *, description: str = "", timeout: float | None = None) -> Model:
        """Create a model without versions; raises AlreadyExists."""
        request = model_registry_service_pb2.CreateModelRequest(
            model_id=model_id(name), description=description, idempotency_key=new_key()
        )
        return await unary(self.registry.CreateModel, request, timeout)

    async def get_model(self, name: str, *, timeout: float | None = None) -> Model:
        """Give a model; raises NotFound."""
        request = model_registry_service_pb2.GetModelRequest(name=f"models/{model_id(name)}")
        return await unary(self.registry.GetModel, request, timeout)

    def list_models(self, *, page_size: int = 0, timeout: float | None = None) -> AsyncIterator[Model]:
        """Give all models that the caller may see, by name."""
        return walk(
            self.registry.ListModels,
            lambda token: model_registry_service_pb2.ListModelsRequest(page_size=page_size, page_token=token),
            lambda page: page.models,
            timeout,
        )

    async def delete_model(self, name: str, *, force: bool = False, timeout: float | None = None) -> None:
        """Delete a model without versions, and the caller's own complete uploads; by `force` all of its uploads.

        Raises NotFound, and FailedPrecondition where it has versions or other uploads.
        """
        await self._delete_model(name, force=force, timeout=timeout)

    async def _delete_model(
        self, name: str, *, force: bool = False, upload: str = "", timeout: float | None = None
    ) -> None:
        request = model_registry_service_pb2.DeleteModelRequest(
            name=f"models/{model_id(name)}", force=force, upload=upload, idempotency_key=new_key()
        )
        await unary(self.registry.DeleteModel, request, timeout)

    async def get_version(self, model_ref: str, *, timeout: float | None = None) -> ModelVersion:
        """Give the version that `NAME`, `NAME:VERSION` or `NAME@ALIAS` means; raises NotFound."""
        ref = ModelRef.parse(model_ref)
        if ref.resource is None:
            return await newest_version(self.registry, ref.parent, timeout)
        request = model_registry_service_pb2.GetModelVersionRequest(name=ref.resource)
        return await unary(self.registry.GetModelVersion, request, timeout)

    def list_versions(
        self, name: str, *, page_size: int = 0, timeout: float | None = None
    ) -> AsyncIterator[ModelVersion]:
        """Give all versions of a model, newest first."""
        parent = f"models/{model_id(name)}"
        return walk(
            self.registry.ListModelVersions,
            lambda token: model_registry_service_pb2.ListModelVersionsRequest(
                parent=parent, page_size=page_size, page_token=token
            ),
            lambda page: page.model_versions,
            timeout,
        )

    async def set_alias(self, name: str, alias: str, version: int, *, timeout: float | None = None) -> ModelAlias:
        """Point an alias at a version, creating it if it is new; raises NotFound."""
        parent = f"models/{model_id(name)}"
        request = model_registry_service_pb2.SetAliasRequest(
            name=f"{parent}/aliases/{alias_id(alias)}",
            model_version=f"{parent}/versions/{version_id(version)}",
            idempotency_key=new_key(),
        )
        return await unary(self.registry.SetAlias, request, timeout)

    def list_aliases(self, name: str, *, page_size: int = 0, timeout: float | None = None) -> AsyncIterator[ModelAlias]:
        """Give all aliases of a model, by name."""
        parent = f"models/{model_id(name)}"
        return walk(
            self.registry.ListAliases,
            lambda token: model_registry_service_pb2.ListAliasesRequest(
                parent=parent, page_size=page_size, page_token=token
            ),
            lambda page: page.aliases,
            timeout,
        )

    async def push(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        description: str = "",
        label_output: str = "",
        progress: Progress | None = None,
    ) -> ModelVersion:
        """Upload a file and make it the model's next version, creating the model if it is new.

        A push that broke off goes on where it stood when the same file is pushed again. `label_output` names
        the output that holds the predicted class. A model that was made for a file which is then refused is removed
        again, unless others push to it meanwhile. Raises DigestMismatch where the service stored other bytes,
        OSError where the file cannot be read.
        """
        model_id(name)
        file = await asyncio.to_thread(LocalFile.inspect, Path(path))
        created = await self._ensure_model(name, description)
        try:
            return await self._push_version(name, file, label_output, progress)
        except (InvalidArgument, ResourceExhausted) as error:
            if created and error.reason in _REFUSALS:
                with contextlib.suppress(InferplaneClientError):
                    await self._delete_model(name, upload=f"models/{name}/uploads/{file.upload_id(name)}")
            raise

    async def _push_version(
        self, name: str, file: LocalFile, label_output: str, progress: Progress | None
    ) -> ModelVersion:
        try:
            return await self._push(name, file, file.upload_id(name), label_output, progress)
        except FailedPrecondition as error:
            # The bytes were pushed before and are a version already; this is to be another one.
            if error.reason != "UPLOAD_NOT_OPEN":
                raise
        return await self._push(name, file, str(uuid.uuid4()), label_output, progress)

    async def download(
        self, model_ref: str, path: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> ModelVersion:
        """Write the bytes of `NAME`, `NAME:VERSION` or `NAME@ALIAS` to a file, verified and durable.

        The file appears under its name only when all bytes are there and have the version's digest; raises
        DigestMismatch otherwise.
        """
        version = await self.get_version(model_ref)
        transfer = Download(self.bytes, version, Path(path), self._backoff, progress)
        # A unary call renews an expired token, which a stream cannot.
        await transfer.run(lambda: self.get_version(model_ref))
        return version

    async def _ensure_model(self, name: str, description: str) -> bool:
        """Whether the model is new."""
        try:
            await self.create_model(name, description=description)
        except AlreadyExists:
            return False
        return True

    async def _push(
        self, name: str, file: LocalFile, upload_id: str, label_output: str, progress: Progress | None
    ) -> ModelVersion:
        upload = f"models/{name}/uploads/{upload_id}"
        await Upload(self.bytes, upload, file, self._backoff, progress).run()
        request = model_registry_service_pb2.CreateModelVersionRequest(
            parent=f"models/{name}", upload=upload, label_output=label_output, idempotency_key=new_key()
        )
        return await unary(self.registry.CreateModelVersion, request, _CREATE_VERSION_TIMEOUT)
