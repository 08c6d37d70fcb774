"""Artifact's RPCs: from message to domain call to message."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from inferplane.artifact.v1 import artifact_service_pb2 as artifact_pb
from inferplane.artifact.v1 import artifact_service_pb2_grpc, model_pb2, model_registry_service_pb2_grpc, upload_pb2
from inferplane.artifact.v1 import model_registry_service_pb2 as registry_pb
from inferplane.common.v1.access_pb2 import Permission
from inferplane.server.access.admission import Admission
from inferplane.server.artifact.blobs import BlobReader
from inferplane.server.artifact.convert import alias_message, model_message, upload_message, version_message
from inferplane.server.artifact.inputs import (
    AliasToSet,
    ModelOfList,
    ModelToDelete,
    ModelToGet,
    NewModel,
    Range,
    UploadToSee,
    VersionToGet,
    VersionToMake,
    pieces_of,
)
from inferplane.server.artifact.inspection import Inspection
from inferplane.server.artifact.registry import NewVersion, OwnUploads, Registry, visible_models
from inferplane.server.artifact.repository import RegistryReader, RegistryRepository
from inferplane.server.artifact.uploads import Uploads
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.fairness import FairGate
from inferplane.server.names import VersionName
from inferplane.server.rpc.call import Call, current_call
from inferplane.server.rpc.interceptors.deadlines import DeadlinePolicy
from inferplane.server.rpc.mutations import Mutations
from inferplane.server.rpc.validation import parse
from inferplane.server.storage.database import Database
from inferplane.server.storage.pages import PageTokens

__all__ = ["ArtifactService", "ModelRegistryService"]

DOWNLOADS = 1024
DOWNLOADS_EACH = 64
"""Downloads open at once, in all and of one caller. One whose client has stopped reading gives up its memory when it is
ended, but its stream closes only when the client takes note."""


class ArtifactService(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """The bytes of models."""

    def __init__(self, uploads: Uploads, blobs: BlobReader, database: Database, deadlines: DeadlinePolicy) -> None:
        self._uploads = uploads
        self._blobs = blobs
        self._database = database
        self._deadlines = deadlines
        self._downloads = FairGate(
            "too many downloads", capacity=DOWNLOADS, each=DOWNLOADS_EACH, waiting=0, waiting_each=0
        )

    async def WriteArtifact(
        self, request_iterator: AsyncIterator[artifact_pb.WriteArtifactRequest], context: Any
    ) -> artifact_pb.WriteArtifactResponse:
        async with aclosing(pieces_of(request_iterator)) as pieces:
            upload = await self._uploads.write(pieces, current_call().actor)
        return artifact_pb.WriteArtifactResponse(upload=upload_message(upload))

    async def GetWriteStatus(self, request: artifact_pb.GetWriteStatusRequest, context: Any) -> upload_pb2.Upload:
        return upload_message(await self._uploads.status(parse(UploadToSee, request).upload))

    async def ReadArtifact(
        self, request: artifact_pb.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[artifact_pb.ReadArtifactResponse]:
        wanted = parse(Range, request)
        call = current_call()
        self._count_download(call)
        async with self._database.transaction() as connection:
            blob = await RegistryReader(connection).blob(wanted.model_version)
        pieces = self._blobs.read(blob, wanted.offset, wanted.limit, call.principal)
        async with aclosing(pieces), aclosing(self._deadlines.pace_answers(call, pieces, _size)) as paced:
            async for offset, data in paced:
                yield artifact_pb.ReadArtifactResponse(offset=offset, data=data)

    def _count_download(self, call: Call) -> None:
        """Count the call among its caller's downloads until gRPC is through with it."""
        caller = call.principal
        if caller.workload is not None:
            return
        if not self._downloads.try_enter(caller.subject, 1):
            raise InferplaneError.overloaded("too many downloads of this caller, or of all, are open")
        context: Any = call.context  # its annotations ask for another kind of callback than it calls
        context.add_done_callback(lambda _: self._downloads.leave(caller.subject, 1))


def _size(piece: tuple[int, bytes]) -> int:
    return len(piece[1])


class ModelRegistryService(model_registry_service_pb2_grpc.ModelRegistryServiceServicer):
    """Models, versions and aliases."""

    def __init__(
        self,
        registry: Registry,
        inspection: Inspection,
        mutations: Mutations,
        database: Database,
        pages: PageTokens,
        admission: Admission,
    ) -> None:
        self._registry = registry
        self._inspection = inspection
        self._mutations = mutations
        self._database = database
        self._pages = pages
        self._admission = admission

    async def CreateModel(self, request: registry_pb.CreateModelRequest, context: Any) -> model_pb2.Model:
        new = parse(NewModel, request)
        creator = current_call().principal.subject

        async def create(unit: Any) -> model_pb2.Model:
            store = RegistryRepository(unit)
            return model_message(await self._registry.create_model(store, new.model_id, new.description, creator))

        return await self._mutations.run(request, model_pb2.Model, create)

    async def GetModel(self, request: registry_pb.GetModelRequest, context: Any) -> model_pb2.Model:
        name = parse(ModelToGet, request).name
        async with self._database.transaction() as connection:
            return model_message(await RegistryReader(connection).model(name))

    async def ListModels(self, request: registry_pb.ListModelsRequest, context: Any) -> registry_pb.ListModelsResponse:
        scope = ("ListModels",)
        page = self._pages.page(scope, request.page_size, request.page_token)
        principal = current_call().principal

        def may_see(name: str) -> bool:
            return self._admission.allows(principal, Permission.PERMISSION_MODELS_READ, name)

        async with self._database.transaction() as connection:
            models, after = await visible_models(RegistryReader(connection).models, page.after, page.size, may_see)
        return registry_pb.ListModelsResponse(
            models=map(model_message, models), next_page_token=self._pages.next_token(scope, after)
        )

    async def DeleteModel(
        self, request: registry_pb.DeleteModelRequest, context: Any
    ) -> registry_pb.DeleteModelResponse:
        given = parse(ModelToDelete, request)
        if given.upload is not None and given.upload.model != given.name:
            raise invalid_field("upload", "must be of the same model")
        uploads = None if given.force else OwnUploads(current_call().principal.subject, given.upload)

        async def delete(unit: Any) -> registry_pb.DeleteModelResponse:
            await self._registry.delete_model(RegistryRepository(unit), given.name, uploads)
            return registry_pb.DeleteModelResponse()

        return await self._mutations.run(request, registry_pb.DeleteModelResponse, delete)

    async def CreateModelVersion(
        self, request: registry_pb.CreateModelVersionRequest, context: Any
    ) -> model_pb2.ModelVersion:
        given = parse(VersionToMake, request)
        if given.upload.model != given.parent:
            raise invalid_field("upload", "must be of the same model")
        new = NewVersion(given.upload, given.label_output, current_call().principal.subject)
        inspected = await self._inspection.inspected(new.upload, new.creator)

        async def create(unit: Any) -> model_pb2.ModelVersion:
            return version_message(await self._registry.create_version(RegistryRepository(unit), new, inspected))

        return await self._mutations.run(request, model_pb2.ModelVersion, create)

    async def GetModelVersion(
        self, request: registry_pb.GetModelVersionRequest, context: Any
    ) -> model_pb2.ModelVersion:
        name = parse(VersionToGet, request).name
        async with self._database.transaction() as connection:
            reader = RegistryReader(connection)
            found = reader.version(name) if isinstance(name, VersionName) else reader.aliased_version(name)
            return version_message(await found)

    async def ListModelVersions(
        self, request: registry_pb.ListModelVersionsRequest, context: Any
    ) -> registry_pb.ListModelVersionsResponse:
        parent = parse(ModelOfList, request).parent
        scope = ("ListModelVersions", parent)
        page = self._pages.page(scope, request.page_size, request.page_token)
        async with self._database.transaction() as connection:
            versions, after = await RegistryReader(connection).versions(parent, page)
        # Off the loop: a page of large signatures takes a while.
        messages = await asyncio.to_thread(lambda: [version_message(version) for version in versions])
        return registry_pb.ListModelVersionsResponse(
            model_versions=messages, next_page_token=self._pages.next_token(scope, after)
        )

    async def SetAlias(self, request: registry_pb.SetAliasRequest, context: Any) -> model_pb2.ModelAlias:
        given = parse(AliasToSet, request)

        async def move(unit: Any) -> model_pb2.ModelAlias:
            store = RegistryRepository(unit)
            return alias_message(await self._registry.set_alias(store, given.name, given.model_version))

        return await self._mutations.run(request, model_pb2.ModelAlias, move)

    async def ListAliases(
        self, request: registry_pb.ListAliasesRequest, context: Any
    ) -> registry_pb.ListAliasesResponse:
        parent = parse(ModelOfList, request).parent
        scope = ("ListAliases", parent)
        page = self._pages.page(scope, request.page_size, request.page_token)
        async with self._database.transaction() as connection:
            aliases, after = await RegistryReader(connection).aliases(parent, page)
        return registry_pb.ListAliasesResponse(
            aliases=map(alias_message, aliases), next_page_token=self._pages.next_token(scope, after)
        )
