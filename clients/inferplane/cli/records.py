"""Messages as plain records, the same for tables and for JSON: numbers as numbers, times as RFC 3339 UTC."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from inferplane.artifact.v1.model_pb2 import Model, ModelAlias, ModelVersion
from inferplane.auth.v1.grant_pb2 import Grant
from inferplane.client.names import short
from inferplane.common.v1.tensor_pb2 import ModelSignature, TensorSpec
from inferplane.inference.v1.deployment_pb2 import Deployment, Target


def time(stamp: Timestamp) -> str | None:
    """Give a time to the second; None where it is not set."""
    return f"{stamp.ToDatetime():%Y-%m-%dT%H:%M:%S}Z" if stamp.seconds else None


def version_number(resource: str) -> int | None:
    """Give the number in `models/{model}/versions/{version}`."""
    number = short(resource)
    return int(number) if number.isdecimal() else None


def model(message: Model) -> dict[str, Any]:
    """Give a model."""
    return {
        "name": short(message.name),
        "description": message.description,
        "create_time": time(message.create_time),
        "creator": short(message.creator),
    }


def version(message: ModelVersion) -> dict[str, Any]:
    """Give a version of a model."""
    return {
        "model": message.name.split("/")[1] if "/" in message.name else message.name,
        "version": version_number(message.name),
        "digest": message.digest,
        "size": message.size,
        "format": message.format,
        "label_output": message.label_output,
        "signature": signature(message.signature),
        "create_time": time(message.create_time),
        "creator": short(message.creator),
    }


def alias(message: ModelAlias) -> dict[str, Any]:
    """Give an alias."""
    return {
        "alias": short(message.name),
        "version": version_number(message.model_version),
        "update_time": time(message.update_time),
    }


def deployment(message: Deployment) -> dict[str, Any]:
    """Give a deployment: what serves, and beside it what is to come."""
    served, *incoming = message.targets or [Target()]
    return {
        "name": short(message.name),
        "model_version": served.model_version,
        "digest": served.digest,
        "incoming": next((target.model_version for target in incoming), ""),
        "incoming_message": next((target.state_message for target in incoming), ""),
        "state": Deployment.State.Name(message.state).removeprefix("STATE_"),
        "state_message": message.state_message,
        "signature": signature(served.signature),
        "create_time": time(message.create_time),
        "creator": short(message.creator),
    }


def grant(message: Grant) -> dict[str, Any]:
    """Give a grant."""
    return {
        "id": short(message.name),
        "role": message.role,
        "to": short(message.subject),
        "on": message.scope,
        "create_time": time(message.create_time),
        "creator": short(message.creator),
    }


def signature(message: ModelSignature) -> dict[str, Any]:
    """Give what a model takes and gives."""
    return {"inputs": [_spec(item) for item in message.inputs], "outputs": [_spec(item) for item in message.outputs]}


def _spec(message: TensorSpec) -> dict[str, Any]:
    return {"name": message.name, "datatype": message.datatype, "shape": list(message.shape)}


def describe(spec: dict[str, Any]) -> str:
    """Give a tensor's name, type and shape in one line, a free size as `?`."""
    sizes = ", ".join("?" if size < 0 else str(size) for size in spec["shape"])
    return f"{spec['name']}: {spec['datatype']}[{sizes}]"
