"""The error catalog: each reason's status code and public message, and its form on the wire."""

from collections.abc import Mapping

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError

__all__ = ["CATALOG", "DOMAIN", "public_message", "reason_name", "status_code", "to_status"]

DOMAIN = "inferplane"
MAX_MESSAGE = 512
MAX_PATH = 64
MAX_VALUE = 200
"""Bytes of UTF-8."""
MAX_VIOLATIONS = 5
"""Together they keep what travels under 8 KiB, of which gRPC's clients take no more: they would see RESOURCE_EXHAUSTED.
The details go as base64, and the message beside them with three characters for a byte."""

_R = ErrorReason
CATALOG: Mapping[ErrorReason.ValueType, tuple[StatusCode, str]] = {
    _R.ERROR_REASON_INTERNAL: (StatusCode.INTERNAL, "internal error"),
    _R.ERROR_REASON_MALFORMED_REQUEST: (StatusCode.INVALID_ARGUMENT, "the request is not a valid message"),
    _R.ERROR_REASON_INVALID_FIELD: (StatusCode.INVALID_ARGUMENT, "a field is invalid"),
    _R.ERROR_REASON_UNKNOWN_METHOD: (StatusCode.UNIMPLEMENTED, "no such method here"),
    _R.ERROR_REASON_DEADLINE_EXCEEDED: (StatusCode.DEADLINE_EXCEEDED, "the call took too long"),
    _R.ERROR_REASON_STREAM_STALLED: (
        StatusCode.DEADLINE_EXCEEDED,
        "the stream or the request made too little progress",
    ),
    _R.ERROR_REASON_DEPENDENCY_UNAVAILABLE: (
        StatusCode.UNAVAILABLE,
        "a dependency does not answer; try again",
    ),
    _R.ERROR_REASON_SHUTTING_DOWN: (StatusCode.UNAVAILABLE, "this process is stopping; try again"),
    _R.ERROR_REASON_IDEMPOTENCY_KEY_REUSED: (
        StatusCode.INVALID_ARGUMENT,
        "the idempotency key was used with another request",
    ),
    _R.ERROR_REASON_INVALID_PAGE_TOKEN: (StatusCode.INVALID_ARGUMENT, "the page token is not of this list"),
    _R.ERROR_REASON_POLICY_STALE: (StatusCode.UNAVAILABLE, "policy cannot be followed, so nothing is allowed"),
    _R.ERROR_REASON_MESSAGE_TOO_LARGE: (StatusCode.RESOURCE_EXHAUSTED, "the message is too large"),
    _R.ERROR_REASON_OVERLOADED: (StatusCode.RESOURCE_EXHAUSTED, "there is no room for this call now; try again"),
    _R.ERROR_REASON_STREAM_EXPIRED: (StatusCode.UNAVAILABLE, "the stream has reached its greatest age; open it anew"),
    _R.ERROR_REASON_CREDENTIALS_MISSING: (StatusCode.UNAUTHENTICATED, "credentials are missing"),
    _R.ERROR_REASON_CREDENTIALS_INVALID: (StatusCode.UNAUTHENTICATED, "the credentials are not valid"),
    _R.ERROR_REASON_TOKEN_EXPIRED: (StatusCode.UNAUTHENTICATED, "the token has expired"),
    _R.ERROR_REASON_LOGIN_FAILED: (StatusCode.UNAUTHENTICATED, "wrong username or password"),
    _R.ERROR_REASON_REFRESH_TOKEN_REUSED: (
        StatusCode.UNAUTHENTICATED,
        "the refresh token was used before; the session has been ended",
    ),
    _R.ERROR_REASON_SESSION_ENDED: (StatusCode.UNAUTHENTICATED, "the session has ended; log in again"),
    _R.ERROR_REASON_PERMISSION_DENIED: (StatusCode.PERMISSION_DENIED, "no grant allows this"),
    _R.ERROR_REASON_METHOD_REFUSED: (StatusCode.PERMISSION_DENIED, "this method is never offered here"),
    _R.ERROR_REASON_RATE_LIMITED: (StatusCode.RESOURCE_EXHAUSTED, "too many attempts; wait"),
    _R.ERROR_REASON_USER_NOT_FOUND: (StatusCode.NOT_FOUND, "no such user"),
    _R.ERROR_REASON_USER_EXISTS: (StatusCode.ALREADY_EXISTS, "a user of that name exists"),
    _R.ERROR_REASON_GRANT_NOT_FOUND: (StatusCode.NOT_FOUND, "no such grant"),
    _R.ERROR_REASON_LAST_ADMIN: (
        StatusCode.FAILED_PRECONDITION,
        "nobody would be left to administer this installation",
    ),
    _R.ERROR_REASON_MODEL_NOT_FOUND: (StatusCode.NOT_FOUND, "no such model"),
    _R.ERROR_REASON_MODEL_EXISTS: (StatusCode.ALREADY_EXISTS, "a model of that name exists"),
    _R.ERROR_REASON_MODEL_VERSION_NOT_FOUND: (StatusCode.NOT_FOUND, "no such version"),
    _R.ERROR_REASON_MODEL_ALIAS_NOT_FOUND: (StatusCode.NOT_FOUND, "no such alias"),
    _R.ERROR_REASON_UPLOAD_NOT_FOUND: (StatusCode.NOT_FOUND, "no such upload"),
    _R.ERROR_REASON_UPLOAD_NOT_OPEN: (StatusCode.FAILED_PRECONDITION, "the upload takes no more bytes"),
    _R.ERROR_REASON_UPLOAD_INCOMPLETE: (StatusCode.FAILED_PRECONDITION, "the upload is not complete"),
    _R.ERROR_REASON_WRITE_OFFSET_MISMATCH: (
        StatusCode.OUT_OF_RANGE,
        "the write does not begin where it must",
    ),
    _R.ERROR_REASON_DIGEST_MISMATCH: (StatusCode.DATA_LOSS, "the bytes received are not those declared"),
    _R.ERROR_REASON_BLOB_CORRUPT: (StatusCode.DATA_LOSS, "the stored bytes are damaged"),
    _R.ERROR_REASON_MODEL_FORMAT_INVALID: (StatusCode.INVALID_ARGUMENT, "the file is not a valid model"),
    _R.ERROR_REASON_MODEL_UNSUPPORTED: (StatusCode.INVALID_ARGUMENT, "the model cannot be served"),
    _R.ERROR_REASON_READ_OFFSET_OUT_OF_RANGE: (StatusCode.OUT_OF_RANGE, "the read begins past the end"),
    _R.ERROR_REASON_UPLOAD_BUSY: (StatusCode.ABORTED, "another stream writes to this upload, or it was begun anew"),
    _R.ERROR_REASON_ARTIFACT_TOO_LARGE: (StatusCode.RESOURCE_EXHAUSTED, "the artifact is too large"),
    _R.ERROR_REASON_MODEL_NOT_EMPTY: (StatusCode.FAILED_PRECONDITION, "the model has versions or uploads"),
    _R.ERROR_REASON_DEPLOYMENT_NOT_FOUND: (StatusCode.NOT_FOUND, "no such deployment"),
    _R.ERROR_REASON_DEPLOYMENT_EXISTS: (StatusCode.ALREADY_EXISTS, "a deployment of that name exists"),
    _R.ERROR_REASON_DEPLOYMENT_NOT_READY: (StatusCode.UNAVAILABLE, "the deployment is not ready; try again"),
    _R.ERROR_REASON_INFERENCE_REJECTED: (StatusCode.INVALID_ARGUMENT, "the model refused the request"),
    _R.ERROR_REASON_INFERENCE_FAILED: (StatusCode.INTERNAL, "the model failed"),
    _R.ERROR_REASON_MODEL_TOO_LARGE_TO_LOAD: (
        StatusCode.FAILED_PRECONDITION,
        "the model is too large to be loaded into Triton",
    ),
    _R.ERROR_REASON_PREDICTION_NOT_FOUND: (StatusCode.NOT_FOUND, "no such prediction"),
    _R.ERROR_REASON_PREDICTION_AMBIGUOUS: (
        StatusCode.FAILED_PRECONDITION,
        "several predictions carry this client request id",
    ),
    _R.ERROR_REASON_FEEDBACK_CONFLICT: (StatusCode.ALREADY_EXISTS, "the prediction has other labels already"),
}


def reason_name(reason: ErrorReason.ValueType) -> str:
    """The reason as `google.rpc.ErrorInfo` carries it."""
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


def status_code(reason: ErrorReason.ValueType) -> StatusCode:
    """The gRPC status of a reason."""
    return CATALOG[reason][0]


def public_message(error: InferplaneError) -> str:
    """What callers are told, in one sentence."""
    message = CATALOG[error.reason][1]
    if error.violations:
        return f"{message}: " + "; ".join(f"{path} {problem}" for path, problem in error.violations[:MAX_VIOLATIONS])
    if detail := error.metadata.get("detail"):
        return f"{message}: {detail}"
    return message


def to_status(error: InferplaneError, request_id: str) -> status_pb2.Status:
    """`google.rpc.Status` with ErrorInfo, and BadRequest and RetryInfo where they apply."""
    code: int = status_code(error.reason).value[0]
    metadata = {key: _cut(value, MAX_VALUE) for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(
        reason=reason_name(error.reason), domain=DOMAIN, metadata={**metadata, "request_id": request_id}
    )
    details = [_packed(info)]
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for path, problem in error.violations[:MAX_VIOLATIONS]:
            bad_request.field_violations.add(field=_cut(path, MAX_PATH), description=_cut(problem, MAX_VALUE))
        details.append(_packed(bad_request))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after * 1000))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code, message=_cut(public_message(error), MAX_MESSAGE), details=details)


def _cut(text: str, size: int) -> str:
    return text.encode(errors="replace")[:size].decode(errors="ignore")


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
