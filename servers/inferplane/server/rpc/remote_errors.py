"""What another service of the installation answered, as our own exception."""

from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError

__all__ = ["as_inferplane_error", "info_of"]

_OF_THE_CALLER = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.INVALID_ARGUMENT)
"""What the other service says of the caller's request is passed on; anything else is between the two services."""


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    """What the other service says of the reason; None where it was gRPC that failed."""
    status = rpc_status.from_call(cast("grpc.Call", error))
    info = error_details_pb2.ErrorInfo()
    if status is None or not any(packed.Unpack(info) for packed in status.details):
        return None
    return info


def as_inferplane_error(error: grpc.aio.AioRpcError, dependency: str) -> InferplaneError:
    """The other service's reason where it concerns the caller, else DEPENDENCY_UNAVAILABLE."""
    info = info_of(error)
    if info is not None and error.code() in _OF_THE_CALLER:
        reason = f"ERROR_REASON_{info.reason}"
        if reason in ErrorReason.keys():  # noqa: SIM118 - an enum, not a dict
            metadata = {key: value for key, value in info.metadata.items() if key != "request_id"}
            return InferplaneError(ErrorReason.Value(reason), **metadata)
    return InferplaneError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, retry_after=1.0, dependency=dependency)
