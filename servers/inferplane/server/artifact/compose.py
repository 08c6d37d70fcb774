"""Puts the artifact service together."""

from inferplane.artifact.v1 import artifact_service_pb2_grpc, model_registry_service_pb2_grpc
from inferplane.server.artifact import (
    blobs,
    inspection,
    onnx_inspection,
    registry,
    repository,
    service,
    store_watch,
    upload_repository,
    uploads,
)
from inferplane.server.artifact.chunk_store import ChunkStore
from inferplane.server.bootstrap import DATABASE, HOUSEKEEPING_INTERVAL, Core
from inferplane.server.rpc.pipeline import at_most
from inferplane.server.settings import Settings

__all__ = ["compose"]

WRITING = "inferplane.artifact.v1.ArtifactService/WriteArtifact"
"""A name of its own in health: while nothing can be written, what is there can still be read and served."""


async def compose(core: Core) -> None:
    """Register ArtifactService and ModelRegistryService on the store of chunks that the settings name."""
    chunks = await _chunk_store(core.settings)
    watch = store_watch.StoreWatch(chunks, core.server.health.report)
    await watch.look()
    core.tasks.start("chunk_store", watch.run)
    flow = uploads.Uploads(
        upload_repository.UploadRepository(core.database, core.units_of_work), chunks, core.settings.max_artifact_size
    )
    core.tasks.every(HOUSEKEEPING_INTERVAL, "clean_up_uploads", flow.clean_up)
    artifact = service.ArtifactService(flow, blobs.BlobReader(chunks), core.database, core.deadlines)
    models = service.ModelRegistryService(
        registry.Registry(),
        inspection.Inspection(repository.Candidates(core.database), chunks, onnx_inspection.inspect_onnx),
        core.mutations,
        core.database,
        core.pages,
        core.admission,
    )
    add_artifact = artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server
    add_models = model_registry_service_pb2_grpc.add_ModelRegistryServiceServicer_to_server
    checks = {"WriteArtifact": at_most(core.settings.max_message_size)}
    core.server.add_service(add_artifact, artifact, (DATABASE, store_watch.READS), checks=checks)
    core.server.health.add(WRITING, (DATABASE, store_watch.READS, store_watch.WRITES))
    core.server.add_service(add_models, models, (DATABASE,))


async def _chunk_store(settings: Settings) -> ChunkStore:
    # Imported here: the object store's library takes memory that a folder of this machine does not need.
    if settings.object_store_url is not None:
        from inferplane.server.artifact.object_chunk_store import ObjectChunkStore

        return ObjectChunkStore.from_url(settings.object_store_url)
    from inferplane.server.artifact.local_chunk_store import LocalChunkStore

    return await LocalChunkStore.open(settings.data_dir / "blobs")
