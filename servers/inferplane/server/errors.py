"""The one exception that domain code raises on purpose."""

from collections.abc import Mapping

from inferplane.common.v1.errors_pb2 import ErrorReason

__all__ = ["FieldViolation", "InferplaneError", "invalid_field"]

OVERLOAD_PAUSE = 0.5
"""Seconds after which a call that there was no room for may be tried again."""

FieldViolation = tuple[str, str]
"""A field's path in the request, and what is wrong with its value."""


class InferplaneError(Exception):
    """A failure that the caller is told about.

    `reason` decides the status code and the public message (see `rpc/errors.py`). `metadata` travels in the
    error's `google.rpc.ErrorInfo`, so it never holds a secret. `retry_after` is in seconds. `private` is for the log
    alone; `logged` says that it stands there already.
    """

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        *,
        violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
        private: str = "",
        **metadata: str,
    ) -> None:
        super().__init__(ErrorReason.Name(reason), metadata)
        self.reason = reason
        self.violations = violations
        self.retry_after = retry_after
        self.private = private
        self.logged = False
        self.metadata: Mapping[str, str] = metadata

    @classmethod
    def overloaded(cls, detail: str) -> "InferplaneError":
        """OVERLOADED: there is no room for this now, and it may be tried again soon."""
        return cls(ErrorReason.ERROR_REASON_OVERLOADED, retry_after=OVERLOAD_PAUSE, detail=detail)


def invalid_field(path: str, problem: str) -> InferplaneError:
    """An `INVALID_FIELD` error about one field of the request."""
    return InferplaneError(ErrorReason.ERROR_REASON_INVALID_FIELD, violations=((path, problem),))
