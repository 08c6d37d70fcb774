"""What became of a prediction: exactly one outcome a call feeds the metrics, the log and, where the call was
authorized, the record."""

import time
from typing import Any

import grpc
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram

from inferplane.server.access.snapshot import Target
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.dataplane.attempt import Attempt
from inferplane.server.inference.records.labels import LabelSource
from inferplane.server.inference.records.notes import Note, Notes
from inferplane.server.log_pace import LogPace
from inferplane.server.rpc.errors import reason_name, status_code
from inferplane.server.telemetry import DURATION_BUCKETS

__all__ = ["Outcomes"]

log = structlog.get_logger("predictions")

LOGGED_A_SECOND = 10
"""Lines about calls that were refused, or that failed by their callers' fault: nobody must fill the disk with them."""
FAILURES_LOGGED_A_SECOND = 100
"""The same about calls that failed otherwise."""
_OF_THE_CALLER = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


class Outcomes:
    """Counts, logs and notes outcomes.

    `inferplane_predictions_total` counts authorized calls by deployment and status code, with
    `inferplane_prediction_duration_seconds` of those that succeeded; `inferplane_predictions_refused_total` counts by
    reason the calls that never were authorized for a deployment that is there; those of `Predict` that the pipeline
    turned away are not among them.
    """

    def __init__(self, notes: Notes, registry: CollectorRegistry) -> None:
        self._notes = notes
        self._predictions = Counter(
            "inferplane_predictions", "Predictions by outcome.", ("deployment", "code"), registry=registry
        )
        self._refused = Counter(
            "inferplane_predictions_refused", "Predictions refused, by reason.", ("reason",), registry=registry
        )
        self._latency = Histogram(
            "inferplane_prediction_duration_seconds", "Time per prediction that succeeded.", ("deployment",),
            buckets=DURATION_BUCKETS, registry=registry,
        )  # fmt: skip
        self._succeeded: dict[str, tuple[Any, Any]] = {}
        self._pace = LogPace(LOGGED_A_SECOND)
        self._failure_pace = LogPace(FAILURES_LOGGED_A_SECOND)

    def succeeded(self, attempt: Attempt, target: Target, labels: LabelSource | None) -> None:
        """The call was answered by `target`."""
        assert attempt.route is not None  # noqa: S101 - what was answered was routed
        elapsed = time.monotonic_ns() - attempt.started_ns
        deployment = attempt.route.deployment
        metrics = self._succeeded.get(deployment)
        if metrics is None:
            # Deployments that are gone leave a few bytes; only what was deployed gets here.
            metrics = self._predictions.labels(deployment, grpc.StatusCode.OK.name), self._latency.labels(deployment)
            self._succeeded[deployment] = metrics
        metrics[0].inc()
        metrics[1].observe(elapsed / 1e9)
        self._note(attempt, target, elapsed, 0, labels)

    def failed(self, attempt: Attempt, error: BaseException) -> None:
        """The call ended with `error`: before it was authorized it is a refusal, which never fills a table."""
        code, reason = _described(error)
        if attempt.route is None:
            self._refuse(attempt.id, attempt.caller, code, reason)
            return
        elapsed = time.monotonic_ns() - attempt.started_ns
        deployment = attempt.route.deployment
        self._predictions.labels(deployment, code.name).inc()
        self._note(attempt, attempt.route.target, elapsed, code.value[0], None)
        self._log_failure(attempt, deployment, code, reason, elapsed, error)

    def _log_failure(
        self,
        attempt: Attempt,
        deployment: str,
        code: grpc.StatusCode,
        reason: str,
        elapsed_ns: int,
        error: BaseException,
    ) -> None:
        pace = self._pace if code in _OF_THE_CALLER else self._failure_pace
        if isinstance(error, InferplaneError):
            error.logged = True
        if pace.passes():
            # The traceback of an error that nobody foresaw is logged where it is translated, under the same id.
            log.warning(
                "prediction_failed",
                request_id=attempt.id,
                deployment=deployment,
                caller=attempt.caller,
                code=code.name,
                reason=reason,
                details=_details(error),
                milliseconds=round(elapsed_ns / 1e6, 2),
                lines_suppressed=pace.take_suppressed() or None,
            )

    def turned_away(self, request_id: str, caller: str, error: BaseException, address: str) -> None:
        """A call that ended with `error` before anything was asked."""
        self._refuse(request_id, caller, *_described(error), address=address)

    def _refuse(
        self, request_id: str, caller: str, code: grpc.StatusCode, reason: str, address: str | None = None
    ) -> None:
        self._refused.labels(reason).inc()
        if self._pace.passes():
            log.warning(
                "prediction_refused",
                request_id=request_id,
                caller=caller,
                address=address,
                code=code.name,
                reason=reason,
                lines_suppressed=self._pace.take_suppressed() or None,
            )

    def _note(self, attempt: Attempt, target: Target, elapsed_ns: int, status: int, labels: LabelSource | None) -> None:
        assert attempt.route is not None  # noqa: S101 - only what was routed is recorded
        self._notes.take(
            Note(
                attempt.id,
                attempt.client_request_id,
                attempt.caller,
                attempt.route.deployment,
                target,
                attempt.arrived_ns,
                elapsed_ns,
                status,
                labels,
            )
        )


def _described(error: BaseException) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, InferplaneError):
        return status_code(error.reason), reason_name(error.reason)
    if isinstance(error, Exception | SystemExit | KeyboardInterrupt):
        return grpc.StatusCode.INTERNAL, "INTERNAL"
    return grpc.StatusCode.CANCELLED, "CANCELLED"


def _details(error: BaseException) -> str | None:
    """What people who look for the cause want to read."""
    if isinstance(error, InferplaneError):
        return error.private or error.metadata.get("detail")
    return type(error).__name__
