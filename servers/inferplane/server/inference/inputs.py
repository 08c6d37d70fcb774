"""Inference's validated requests."""

from typing import Annotated

from pydantic import AfterValidator

from inferplane.inference.v1 import deployment_pb2, deployment_service_pb2
from inferplane.server.errors import invalid_field
from inferplane.server.names import ClientRequestId, DeploymentId, DeploymentRef, VersionOrAliasRef
from inferplane.server.rpc.validation import Input, parse

__all__ = ["NamedDeployment", "NewDeployment", "PredictInput", "replacement"]


def _primary(role: int) -> int:
    if role not in (deployment_pb2.Target.ROLE_UNSPECIFIED, deployment_pb2.Target.ROLE_PRIMARY):
        raise ValueError("must be ROLE_PRIMARY")
    return role


class NewDeployment(Input):
    deployment_id: DeploymentId
    model_version: VersionOrAliasRef


class NamedDeployment(Input):
    name: DeploymentRef


class NewTarget(Input):
    role: Annotated[int, AfterValidator(_primary)]
    model_version: VersionOrAliasRef


def replacement(request: deployment_service_pb2.UpdateDeploymentRequest) -> tuple[str, str]:
    """The deployment's id, and the name of the version or alias that it shall serve. Raises INVALID_FIELD."""
    unknown = set(request.update_mask.paths) - {"targets", "*"}
    if unknown:
        raise invalid_field("update_mask", f"must name nothing but targets, not {min(unknown)[:64]}")
    if len(request.deployment.targets) != 1:
        raise invalid_field("deployment.targets", "must be exactly one")
    name = parse(NamedDeployment, request.deployment, "deployment").name
    (target,) = request.deployment.targets
    parse(NewTarget, target, "deployment.targets[0]")
    return name, target.model_version


class PredictInput(Input):
    deployment: DeploymentRef
    client_request_id: ClientRequestId
