"""Inference's validated requests."""

from typing import Annotated

from pydantic import Field

from inferplane.server.limits import MAX_CLIENT_REQUEST_ID
from inferplane.server.names import DeploymentId, DeploymentRef, VersionOrAliasRef
from inferplane.server.rpc.validation import Input

__all__ = ["NamedDeployment", "NewDeployment", "PredictInput"]


class NewDeployment(Input):
    deployment_id: DeploymentId
    model_version: VersionOrAliasRef


class NamedDeployment(Input):
    name: DeploymentRef


class PredictInput(Input):
    deployment: DeploymentRef
    client_request_id: Annotated[str, Field(max_length=MAX_CLIENT_REQUEST_ID)]
