"""Artifact's domain objects as messages."""

from inferplane.artifact.v1 import model_pb2, upload_pb2
from inferplane.server.artifact.registry import Alias, Model, Version
from inferplane.server.artifact.uploads import Upload
from inferplane.server.names import ALIAS, MODEL, UPLOAD, VERSION
from inferplane.server.tensors import signature_message
from inferplane.server.timestamps import timestamp

__all__ = ["alias_message", "model_message", "upload_message", "version_message"]


def model_message(model: Model) -> model_pb2.Model:
    """A model."""
    return model_pb2.Model(
        name=MODEL.format(model.name),
        description=model.description,
        create_time=timestamp(model.created_at),
        creator=model.creator,
    )


def version_message(version: Version) -> model_pb2.ModelVersion:
    """A version."""
    return model_pb2.ModelVersion(
        name=VERSION.format(*version.name),
        digest=version.digest,
        size=version.size,
        format=version.format,
        signature=signature_message(version.signature),
        label_output=version.label_output,
        create_time=timestamp(version.created_at),
        creator=version.creator,
    )


def alias_message(alias: Alias) -> model_pb2.ModelAlias:
    """An alias."""
    return model_pb2.ModelAlias(
        name=ALIAS.format(*alias.name),
        model_version=VERSION.format(alias.name.model, alias.version),
        update_time=timestamp(alias.updated_at),
    )


def upload_message(upload: Upload) -> upload_pb2.Upload:
    """An upload."""
    return upload_pb2.Upload(
        name=UPLOAD.format(*upload.name),
        committed_size=upload.committed_size,
        complete=upload.complete,
        digest=upload.digest,
        create_time=timestamp(upload.created_at),
    )
