"""Models, versions and aliases: the rules, free of transport and storage."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.artifact.uploads import Upload
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.ids import now
from inferplane.server.names import ALIAS, MODEL, UPLOAD, VERSION, AliasName, UploadName, VersionName
from inferplane.server.storage.audit import Changed
from inferplane.server.storage.pages import PAGE_BYTES
from inferplane.server.tensors import Signature, TensorSpec

if TYPE_CHECKING:
    from inferplane.server.artifact.repository import RegistryRepository

__all__ = ["Alias", "Inspected", "Model", "NewVersion", "OwnUploads", "Registry", "Version", "label_output"]

FORMAT = "onnx"
LABEL_NAMES = ("label", "output_label")

_SCANNED = 1000
"""Models looked at in one query, while those are sought that a caller may see."""


@dataclass(frozen=True, slots=True)
class Model:
    """A named line of versions."""

    name: str
    description: str
    created_at: datetime
    creator: str


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version. `digest` is `sha256:` and 64 hexadecimal digits, `size` in bytes."""

    name: VersionName
    upload: UploadName
    digest: str
    size: int
    format: str
    signature: Signature
    label_output: str
    created_at: datetime
    creator: str


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that points at a version."""

    name: AliasName
    version: int
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version to make of an upload. `label_output` is empty where the model's own names shall decide."""

    upload: UploadName
    label_output: str
    creator: str


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a file says about itself, and the upload that it was the file of."""

    upload: Upload
    signature: Signature


@dataclass(frozen=True, slots=True)
class OwnUploads:
    """The complete uploads of `owner`, or only the one of them that `only` names."""

    owner: str
    only: UploadName | None


ReadModels = Callable[[str | None, int], Awaitable[Sequence[Model]]]
"""Gives so many models by name after one, or from the first."""


class Registry:
    """Creates models and versions, moves aliases."""

    async def create_model(self, store: "RegistryRepository", name: str, description: str, creator: str) -> Model:
        """Raises MODEL_EXISTS."""
        model = Model(name, description, now(), creator)
        if not await store.add_model(model):
            raise InferplaneError(ErrorReason.ERROR_REASON_MODEL_EXISTS, model=name)
        store.record("model.create", MODEL.format(name))
        return model

    async def delete_model(self, store: "RegistryRepository", name: str, uploads: OwnUploads | None) -> None:
        """Remove a model without versions, and those of its uploads, or all of them for None.

        Raises MODEL_NOT_FOUND, and MODEL_NOT_EMPTY where there is more.
        """
        last = await store.lock_model(name)
        if last is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_MODEL_NOT_FOUND, model=name)
        if last or not await store.delete_uploads(name, uploads):
            raise InferplaneError(ErrorReason.ERROR_REASON_MODEL_NOT_EMPTY, model=name)
        await store.delete_model(name)
        store.record("model.delete", MODEL.format(name))

    async def create_version(
        self, store: "RegistryRepository", new: NewVersion, inspected: Inspected | None
    ) -> Version:
        """Make the upload the model's next version. `inspected` is None where the upload could not be inspected.

        Raises MODEL_NOT_FOUND, UPLOAD_NOT_FOUND, UPLOAD_INCOMPLETE, UPLOAD_NOT_OPEN for an upload that is a version
        already, UPLOAD_BUSY where it was begun anew since it was inspected, and INVALID_FIELD for an output that
        holds no class.
        """
        model = new.upload.model
        last = await store.lock_model(model)
        if last is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_MODEL_NOT_FOUND, model=model)
        upload = await self._finished(store, new.upload)
        if inspected is None:
            # It was not finished yet when it was to be inspected.
            raise _incomplete(new.upload)
        if upload != inspected.upload:
            # Clients choose the names of uploads: one that goes with its model can come back with other bytes.
            detail = "it is not the one that was inspected any more"
            raise InferplaneError(ErrorReason.ERROR_REASON_UPLOAD_BUSY, retry_after=1.0, detail=detail)
        signature = inspected.signature
        version = Version(
            name=VersionName(model, last + 1),
            upload=new.upload,
            digest=upload.digest,
            size=upload.committed_size,
            format=FORMAT,
            signature=signature,
            label_output=label_output(signature, new.label_output),
            created_at=now(),
            creator=new.creator,
        )
        await store.add_version(version)
        store.record("version.create", VERSION.format(*version.name), digest=version.digest, size=version.size)
        return version

    async def set_alias(self, store: "RegistryRepository", name: AliasName, version: VersionName) -> Alias:
        """Raises MODEL_VERSION_NOT_FOUND, and INVALID_FIELD for a version of another model."""
        if version.model != name.model:
            raise invalid_field("model_version", "must be a version of the same model")
        if not await store.version_exists(version):
            raise InferplaneError(ErrorReason.ERROR_REASON_MODEL_VERSION_NOT_FOUND, version=VERSION.format(*version))
        before = await store.alias_for_update(name)
        alias = Alias(name, version.version, now())
        await store.put_alias(alias)
        moved = Changed(before.version if before else None, version.version)
        store.record("alias.set", ALIAS.format(*name), version=moved)
        return alias

    async def _finished(self, store: "RegistryRepository", name: UploadName) -> Upload:
        upload = await store.upload_to_use(name)
        if upload is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_UPLOAD_NOT_FOUND, upload=UPLOAD.format(*name))
        if not upload.complete:
            raise _incomplete(name)
        if await store.is_used(name):
            raise InferplaneError(ErrorReason.ERROR_REASON_UPLOAD_NOT_OPEN, detail="it is a version already")
        return upload


def _incomplete(name: UploadName) -> InferplaneError:
    return InferplaneError(ErrorReason.ERROR_REASON_UPLOAD_INCOMPLETE, upload=UPLOAD.format(*name))


async def visible_models(
    read: ReadModels, after: str | None, size: int, may_see: Callable[[str], bool]
) -> tuple[list[Model], str | None]:
    """Up to `size` models by name after `after`, of those that `may_see`, and the name to go on after if there are
    more. Fewer than `size` are not the end where their descriptions are long."""
    found: list[Model] = []
    room = PAGE_BYTES
    cursor = after
    while batch := await read(cursor, _SCANNED):
        for model in batch:
            if not may_see(model.name):
                continue
            room -= len(model.description.encode())
            if found and (len(found) == size or room < 0):
                return found, found[-1].name
            found.append(model)
        if len(batch) < _SCANNED:
            break
        cursor = batch[-1].name
    return found, None


def label_output(signature: Signature, asked: str) -> str:
    """The output that holds the predicted class: the one asked for, else one whose name says so, else empty.

    Raises INVALID_FIELD where the output asked for is not there or holds no class.
    """
    outputs = {spec.name: spec for spec in signature.outputs}
    if not asked:
        return next((name for name in LABEL_NAMES if name in outputs and _holds_class(outputs[name])), "")
    if asked not in outputs:
        raise invalid_field("label_output", "is no output of the model")
    if not _holds_class(outputs[asked]):
        raise invalid_field("label_output", "must be classes of shape [N] or [N, 1], or scores of shape [N, C]")
    return asked


def _holds_class(spec: TensorSpec) -> bool:
    rank = len(spec.shape)
    if spec.datatype.startswith("FP"):
        return rank == 2
    return rank == 1 or (rank == 2 and spec.shape[1] == 1)
