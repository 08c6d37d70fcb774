"""Channels: the one place that decides how a service is reached."""

import json
from collections.abc import Iterable, Sequence

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from inferplane.artifact.v1 import artifact_service_pb2, model_registry_service_pb2
from inferplane.auth.v1 import auth_service_pb2, identity_service_pb2
from inferplane.inference.v1 import deployment_service_pb2, inference_service_pb2
from inferplane.reporting.v1 import reporting_service_pb2

_MIB = 1024 * 1024
_SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    service
    for module in (
        auth_service_pb2,
        identity_service_pb2,
        artifact_service_pb2,
        model_registry_service_pb2,
        deployment_service_pb2,
        inference_service_pb2,
        reporting_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)
_READS = ("Get", "List", "Query", "WhoAmI")
# Safe to repeat although they carry no key: a label given twice counts once, and a refresh token answers the same
# successor again for a while.
_REPEATABLE = ("RefreshToken", "SubmitFeedback")


def _safe_to_repeat(method: MethodDescriptor) -> bool:
    if method.client_streaming or method.server_streaming:
        return False
    return (
        method.name.startswith(_READS)
        or method.name in _REPEATABLE
        or "idempotency_key" in method.input_type.fields_by_name
    )


def service_config(services: Iterable[ServiceDescriptor] = _SERVICES) -> str:
    """Make the gRPC service config: calls that are safe to repeat are, up to 4 times, while UNAVAILABLE."""
    names = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if _safe_to_repeat(method)
    ]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})


def make_channel(
    target: str, interceptors: Sequence[grpc.aio.ClientInterceptor], *, max_receive: int = 4 * _MIB
) -> grpc.aio.Channel:
    """Open a plaintext channel to `host:port` that receives messages of at most `max_receive` bytes."""
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", service_config()),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", max_receive),
        ("grpc.max_send_message_length", -1),
        # A server that was not told otherwise ends connections that ping more often than every 5 minutes.
        ("grpc.keepalive_time_ms", 330_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Bearer tokens in plaintext must not pass through whatever `http_proxy` names.
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
