"""What shall be served: the rules, free of transport and storage."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.ids import now, uuid7
from inferplane.server.inference.formats.onnx import largest_model
from inferplane.server.names import DEPLOYMENT, VERSION
from inferplane.server.tensors import Signature

if TYPE_CHECKING:
    from inferplane.server.inference.repository import DeploymentRepository

__all__ = ["Deployment", "Deployments", "Incoming", "Served", "State", "VersionInfo"]

State = Literal["LOADING", "READY", "FAILED"]


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """What the registry knows of a version. `size` is in bytes.

    `signature` is None where it was not read: it may be large, and few need it. It tells no versions apart.
    """

    model: str
    version: int
    digest: str
    size: int
    signature: Signature | None = field(compare=False)
    label_output: str

    def known_signature(self) -> Signature:
        """The signature; ValueError where it was not read."""
        if self.signature is None:
            raise ValueError(f"the signature of version {self.version} of {self.model} was not read")
        return self.signature


@dataclass(frozen=True, slots=True)
class Served:
    """What Triton answers with under a name."""

    digest: str
    version: int

    def is_of(self, version: VersionInfo) -> bool:
        """Whether it is that version. Two versions may have the same bytes."""
        return (self.digest, self.version) == (version.digest, version.version)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A version that shall take the place of the one that is served.

    `age` is how many seconds ago it was asked for, by the database's clock; `problem` why it could not be loaded.
    """

    version: VersionInfo
    requested_at: datetime
    age: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A version that is served under a name, or shall be, or shall be no more.

    `formers` were served, or were to be, and are what Triton may still answer with.
    """

    id: UUID
    name: str
    version: VersionInfo
    state: State
    state_message: str
    created_at: datetime
    creator: str
    requested_at: datetime
    deleted: bool = False
    incoming: Incoming | None = None
    formers: tuple[VersionInfo, ...] = ()


class Deployments:
    """Creates, changes and deletes deployments. Loading and unloading follow the commit."""

    async def create(self, store: "DeploymentRepository", name: str, version: VersionInfo, creator: str) -> Deployment:
        """Raises DEPLOYMENT_EXISTS or MODEL_TOO_LARGE_TO_LOAD."""
        _check_size(name, version)
        at = now()
        deployment = Deployment(uuid7(), name, version, "LOADING", "", at, creator, at)
        if not await store.add(deployment):
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_EXISTS, deployment=name)
        _record(store, "deployment.create", name, version)
        return deployment

    async def replace(self, store: "DeploymentRepository", name: str, version: VersionInfo) -> Deployment:
        """Serve another version: what is served goes on until the other is loaded.

        Raises DEPLOYMENT_NOT_FOUND, MODEL_TOO_LARGE_TO_LOAD, and INVALID_FIELD for a version of another model: the
        version in Triton's answer is what tells whose bytes answered.
        """
        _check_size(name, version)
        deployment = await store.locked(name)
        if deployment is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND, deployment=name)
        served = deployment.version
        if version.model != served.model:
            raise invalid_field("deployment.targets[0].model_version", f"must be a version of models/{served.model}")
        await store.retire_incoming(deployment.id)
        if deployment.state != "READY":
            await store.set_primary(deployment, version)
        elif version != served:
            await store.add_incoming(deployment.id, version)
        _record(store, "deployment.update", name, version)
        return await store.locked(name) or deployment

    async def delete(self, store: "DeploymentRepository", name: str) -> None:
        """Raises DEPLOYMENT_NOT_FOUND."""
        if not await store.mark_deleted(name, now()):
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND, deployment=name)
        store.record("deployment.delete", DEPLOYMENT.format(name))


def _check_size(name: str, version: VersionInfo) -> None:
    limit = largest_model(name, version.version, version.known_signature())
    if version.size > limit:
        raise InferplaneError(
            ErrorReason.ERROR_REASON_MODEL_TOO_LARGE_TO_LOAD, size=str(version.size), limit=str(limit)
        )


def _record(store: "DeploymentRepository", action: str, name: str, version: VersionInfo) -> None:
    resource = VERSION.format(version.model, version.version)
    store.record(action, DEPLOYMENT.format(name), version=resource, digest=version.digest)
