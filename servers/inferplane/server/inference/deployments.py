"""What shall be served: the rules, free of transport and storage."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import now, uuid7
from inferplane.server.tensors import Signature

__all__ = ["Deployment", "DeploymentStore", "Deployments", "State", "VersionInfo"]

State = Literal["LOADING", "READY", "FAILED"]


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """What the registry knows of a version. `size` is in bytes."""

    model: str
    version: int
    digest: str
    size: int
    signature: Signature
    label_output: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """A version that is served under a name, or shall be, or shall be no more."""

    id: UUID
    name: str
    version: VersionInfo
    state: State
    state_message: str
    created_at: datetime
    creator: str
    deleted: bool = False


class DeploymentStore(Protocol):
    """What `Deployments` needs of a unit of work."""

    def record(self, action: str, resource: str, **detail: str | int) -> None: ...
    async def add(self, deployment: Deployment) -> bool: ...
    async def mark_deleted(self, name: str, at: datetime) -> bool: ...


class Deployments:
    """Creates and deletes deployments. Loading and unloading follow the commit."""

    async def create(self, store: DeploymentStore, name: str, version: VersionInfo, creator: str) -> Deployment:
        """Raises DEPLOYMENT_EXISTS."""
        deployment = Deployment(uuid7(), name, version, "LOADING", "", now(), creator)
        if not await store.add(deployment):
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_EXISTS, deployment=name)
        model_version = f"models/{version.model}/versions/{version.version}"
        store.record("deployment.create", f"deployments/{name}", version=model_version, digest=version.digest)
        return deployment

    async def delete(self, store: DeploymentStore, name: str) -> None:
        """Raises DEPLOYMENT_NOT_FOUND."""
        if not await store.mark_deleted(name, now()):
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND, deployment=name)
        store.record("deployment.delete", f"deployments/{name}")
