"""Feedback, metrics and quality."""

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from inferplane.client.calls import unary
from inferplane.client.errors import NotFound
from inferplane.client.names import invalid, model_id
from inferplane.reporting.v1 import reporting_service_pb2, reporting_service_pb2_grpc
from inferplane.reporting.v1.prediction_pb2 import Feedback
from inferplane.reporting.v1.report_pb2 import TimeRange, VersionMetrics, VersionQuality

Labels = str | int | Sequence[str | int]
"""The right classes of one prediction: one for each row of its batch; a single one stands for itself."""

IdKind = Literal["auto", "prediction", "client"]

_BATCH = 1000
_BATCH_LABELS = 200_000
"""What the service takes in one request."""
_RETRY_PAUSE = 0.25
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


class ReportingClient:
    """The reporting service; `service` is the generated stub.

    Every method raises InferplaneClientError; `timeout` is in seconds, None for the client's default.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.service = reporting_service_pb2_grpc.ReportingServiceStub(channel)

    async def submit_feedback(
        self,
        deployment: str,
        labels: Mapping[str, Labels],
        *,
        ids: IdKind = "auto",
        settle: float = 5.0,
        timeout: float | None = None,
    ) -> int:
        """Tell the right answers of predictions; gives the number of predictions that had none before.

        The keys are prediction ids or the client's own request ids; `ids` says which, and `auto` takes a
        UUIDv7 for a prediction id. Up to 1,000, with up to 200,000 labels, are stored all or none, more in several
        such batches. Records arrive seconds after their predictions, so an unknown id is tried again for `settle`
        seconds before NotFound is raised.
        """
        name = f"deployments/{model_id(deployment, 'deployment')}"
        items = [_feedback(key, value, ids) for key, value in labels.items()]
        stored = 0
        for batch in _batches(items):
            request = reporting_service_pb2.SubmitFeedbackRequest(deployment=name, feedback=batch)
            stored += await self._submit(request, settle, timeout)
        return stored

    async def metrics(
        self,
        model: str,
        since: datetime | None = None,
        until: datetime | None = None,
        quantiles: Sequence[float] | None = None,
        *,
        timeout: float | None = None,
    ) -> list[VersionMetrics]:
        """Give calls, errors and latency by version, newest first, of calls in [since, until)."""
        request = reporting_service_pb2.QueryMetricsRequest(
            model=f"models/{model_id(model)}",
            time_range=_time_range(since, until),
            quantiles=quantiles or (),
        )
        return list((await unary(self.service.QueryMetrics, request, timeout)).versions)

    async def quality(
        self,
        model: str,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        timeout: float | None = None,
    ) -> list[VersionQuality]:
        """Give rows, labels and accuracy by version, newest first, of predictions in [since, until)."""
        request = reporting_service_pb2.GetQualityReportRequest(
            model=f"models/{model_id(model)}", time_range=_time_range(since, until)
        )
        return list((await unary(self.service.GetQualityReport, request, timeout)).versions)

    async def _submit(
        self,
        request: reporting_service_pb2.SubmitFeedbackRequest,
        settle: float,
        timeout: float | None,
    ) -> int:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + settle
        while True:
            try:
                return (await unary(self.service.SubmitFeedback, request, timeout)).stored_count
            except NotFound as error:
                left = deadline - loop.time()
                if error.reason != "PREDICTION_NOT_FOUND" or left <= 0:
                    raise
            await asyncio.sleep(min(_RETRY_PAUSE, left))


def _feedback(key: str, labels: Labels, ids: IdKind) -> Feedback:
    texts = [str(labels)] if isinstance(labels, str | int) else [str(label) for label in labels]
    if not key or not texts:
        raise invalid("feedback", "an id and at least one label are needed")
    if ids == "prediction" or (ids == "auto" and _UUID7.fullmatch(key)):
        return Feedback(prediction_id=key, labels=texts)
    return Feedback(client_request_id=key, labels=texts)


def _batches(items: Sequence[Feedback]) -> Iterator[Sequence[Feedback]]:
    batch: list[Feedback] = []
    room = _BATCH_LABELS
    for item in items:
        if batch and (len(batch) == _BATCH or len(item.labels) > room):
            yield batch
            batch, room = [], _BATCH_LABELS
        batch.append(item)
        room -= len(item.labels)
    if batch:
        yield batch


def _time_range(since: datetime | None, until: datetime | None) -> TimeRange:
    return TimeRange(start_time=_timestamp("since", since), end_time=_timestamp("until", until))


def _timestamp(field: str, time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    if time.tzinfo is None:
        raise invalid(field, "the time needs a time zone")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
