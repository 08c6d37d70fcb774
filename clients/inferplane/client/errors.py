"""What can go wrong, as exceptions: one class for each gRPC status, with the details that the service sent."""

# ruff: noqa: N818 - the classes are named for the gRPC statuses that they stand for

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

_DOMAIN = "inferplane"
_STATUS_DETAILS = "grpc-status-details-bin"
_REQUEST_ID = "inferplane-request-id"


class InferplaneClientError(Exception):
    """A call failed, or could not be made.

    `status` is the gRPC status; `reason` the name of an `ErrorReason` without its prefix, empty where the
    service gave none; `metadata` the details of the reason; `violations` the pairs (field path, description)
    of an invalid request; `retry_after` the seconds to wait before trying again, None where the service did
    not say; `request_id` leads to the service's log. Branch on `reason`, never on the text.
    """

    default_status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        status: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status or self.default_status
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = list(violations)
        self.retry_after = retry_after
        self.request_id = request_id or self.metadata.get("request_id", "")


class Cancelled(InferplaneClientError):
    """CANCELLED: the call was given up."""

    default_status = grpc.StatusCode.CANCELLED


class InvalidArgument(InferplaneClientError):
    """INVALID_ARGUMENT: the request is wrong whatever the state of the service; see `violations`."""

    default_status = grpc.StatusCode.INVALID_ARGUMENT


class DeadlineExceeded(InferplaneClientError):
    """DEADLINE_EXCEEDED: no answer in time; a mutation may or may not have happened."""

    default_status = grpc.StatusCode.DEADLINE_EXCEEDED


class NotFound(InferplaneClientError):
    """NOT_FOUND: no such thing, or none that the caller may see."""

    default_status = grpc.StatusCode.NOT_FOUND


class AlreadyExists(InferplaneClientError):
    """ALREADY_EXISTS: the name is taken."""

    default_status = grpc.StatusCode.ALREADY_EXISTS


class PermissionDenied(InferplaneClientError):
    """PERMISSION_DENIED: no grant of the caller allows this; metadata `permission` and `resource` say what."""

    default_status = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhausted(InferplaneClientError):
    """RESOURCE_EXHAUSTED: too many calls or too large a message; see `retry_after`."""

    default_status = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPrecondition(InferplaneClientError):
    """FAILED_PRECONDITION: the state of the service does not allow this now."""

    default_status = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(InferplaneClientError):
    """ABORTED: somebody else is changing the same thing."""

    default_status = grpc.StatusCode.ABORTED


class OutOfRange(InferplaneClientError):
    """OUT_OF_RANGE: an offset lies outside of the bytes."""

    default_status = grpc.StatusCode.OUT_OF_RANGE


class Unimplemented(InferplaneClientError):
    """UNIMPLEMENTED: the service does not know this method."""

    default_status = grpc.StatusCode.UNIMPLEMENTED


class Internal(InferplaneClientError):
    """INTERNAL: a defect in the service, or an answer that makes no sense."""

    default_status = grpc.StatusCode.INTERNAL


class Unavailable(InferplaneClientError):
    """UNAVAILABLE: the service, or something it needs, does not answer."""

    default_status = grpc.StatusCode.UNAVAILABLE


class DataLoss(InferplaneClientError):
    """DATA_LOSS: bytes do not have their digest."""

    default_status = grpc.StatusCode.DATA_LOSS


class Unauthenticated(InferplaneClientError):
    """UNAUTHENTICATED: no credentials, or none that are good any more."""

    default_status = grpc.StatusCode.UNAUTHENTICATED


class DigestMismatch(DataLoss):
    """The bytes at one end are not those at the other."""

    def __init__(self, message: str, *, expected: str, actual: str) -> None:
        super().__init__(message, reason="DIGEST_MISMATCH", metadata={"expected": expected, "actual": actual})


class DeploymentFailed(FailedPrecondition):
    """The deployment could not be loaded; the text is the service's `state_message`."""


class ConfigurationError(FailedPrecondition):
    """The ready file, the profile or the credentials on this machine are missing, malformed or unsafe."""


_BY_STATUS: Mapping[grpc.StatusCode, type[InferplaneClientError]] = {
    kind.default_status: kind
    for kind in (
        Cancelled,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}


def translate(error: grpc.aio.AioRpcError) -> InferplaneClientError:
    """Make the typed exception for a failed call; malformed details are left out, never raised."""
    trailing = _trailing(error)
    reason, metadata = "", dict[str, str]()
    violations: list[tuple[str, str]] = []
    retry_after: float | None = None
    for detail in _details(trailing.get(_STATUS_DETAILS)):
        if isinstance(detail, error_details_pb2.ErrorInfo) and detail.domain == _DOMAIN:
            reason, metadata = detail.reason, dict(detail.metadata)
        elif isinstance(detail, error_details_pb2.BadRequest):
            violations += [(item.field, item.description) for item in detail.field_violations]
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
    kind = _BY_STATUS.get(error.code(), InferplaneClientError)
    return kind(
        error.details() or error.code().name,
        status=error.code(),
        reason=reason,
        metadata=metadata,
        violations=violations,
        retry_after=retry_after,
        request_id=metadata.get("request_id", "") or _text(trailing.get(_REQUEST_ID)),
    )


def _trailing(error: grpc.aio.AioRpcError) -> dict[str, str | bytes]:
    metadata = error.trailing_metadata()
    return dict(metadata) if metadata else {}


def _text(value: str | bytes | None) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value or ""


def _details(packed: str | bytes | None) -> Iterable[Message]:
    if not isinstance(packed, bytes):
        return
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    try:
        status = status_pb2.Status.FromString(packed)
        for item in status.details:
            for kind in kinds:
                if item.Is(kind.DESCRIPTOR):
                    yield kind.FromString(item.value)
    except DecodeError:
        return
