"""Prediction records: noted in memory while a call ends, sent to Reporting in batches behind its back."""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import CollectorRegistry, Counter, Histogram

from inferplane.reporting.v1.prediction_pb2 import PredictionRecord
from inferplane.reporting.v1.reporting_service_pb2 import IngestPredictionsRequest
from inferplane.server.access.snapshot import Route
from inferplane.server.inference.records.labels import predicted_labels

__all__ = ["Noted", "RecordSink", "Recorder", "RefusedError", "ReportingSink"]

log = structlog.get_logger()

BATCH = 1000
INTERVAL = 0.2
MAX_NOTED = 100_000
MAX_HELD_BYTES = 64 << 20
MAX_MESSAGE_BYTES = 1 << 20
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass(frozen=True, slots=True)
class Noted:
    """What a call leaves behind. `answer` is kept only where labels are to be read from it."""

    prediction_id: str
    client_request_id: str
    caller: str
    route: Route
    arrived_ns: int
    latency_ns: int
    status_code: int
    answer: bytes


class RefusedError(Exception):
    """A message will never be taken as it is: one of its records is not valid, or it is too large."""


class RecordSink(Protocol):
    """Where batches go."""

    async def store(self, records: list[PredictionRecord]) -> None:
        """Store a batch; RefusedError where it will never be taken, anything else where it must be sent again."""


class Recorder:
    """Takes notes and delivers them. When Reporting is away for so long that memory runs out, the oldest notes
    are dropped, counted in `inferplane_prediction_records_dropped_total` and logged."""

    def __init__(self, sink: RecordSink, registry: CollectorRegistry) -> None:
        self._sink = sink
        self._noted: deque[Noted] = deque()
        self._held = 0
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._undelivered: deque[list[PredictionRecord]] = deque()
        labels = ("deployment", "code")
        self._predictions = Counter("inferplane_predictions", "Predictions by outcome.", labels, registry=registry)
        self._latency = Histogram(
            "inferplane_prediction_duration_seconds", "Time per prediction.", ("deployment",), buckets=BUCKETS,
            registry=registry,
        )  # fmt: skip
        self._dropped = Counter(
            "inferplane_prediction_records_dropped", "Records that could not be delivered.", registry=registry
        )

    def note(self, noted: Noted) -> None:
        """Take a note; costs the caller next to nothing."""
        self._noted.append(noted)
        self._held += len(noted.answer)
        while len(self._noted) > MAX_NOTED or self._held > MAX_HELD_BYTES:
            self._held -= len(self._noted.popleft().answer)
            self._dropped.inc()
        if len(self._noted) >= BATCH:
            self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled: every INTERVAL what there is, and at once when a batch is full."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), INTERVAL)
            self._wake.clear()
            delivered = await self._deliver_batch()
            while delivered and len(self._noted) >= BATCH:
                delivered = await self._deliver_batch()

    async def flush(self) -> None:
        """Deliver all that is noted now, or as much as can be."""
        while (self._undelivered or self._noted) and await self._deliver_batch():
            pass

    async def _deliver_batch(self) -> bool:
        """Deliver what was left over, or else the next batch; False where Reporting cannot take it now."""
        # A stopping service flushes while `run` may be in the middle of a batch.
        async with self._turn:
            return await self._deliver()

    async def _deliver(self) -> bool:
        if not self._undelivered and self._noted:
            batch = [self._noted.popleft() for _ in range(min(BATCH, len(self._noted)))]
            self._held -= sum(len(noted.answer) for noted in batch)
            self._observe(batch)
            # Off the loop: the labels of a thousand answers take a while.
            self._undelivered.extend(await asyncio.to_thread(_messages, batch))
        while self._undelivered:
            records = self._undelivered[0]
            try:
                await self._sink.store(records)
            except RefusedError:
                self._isolate(records)
                continue
            except Exception as error:  # noqa: BLE001 - whatever it is, the records are still here
                log.warning("prediction_records_delayed", error=type(error).__name__, waiting=len(self._noted))
                return False
            self._undelivered.popleft()
        return True

    def _isolate(self, records: list[PredictionRecord]) -> None:
        """Halve a refused message until the record that it was refused for stands alone, and drop that one."""
        self._undelivered.popleft()
        if len(records) == 1:
            self._dropped.inc()
            log.error("prediction_record_refused", prediction_id=records[0].prediction_id)
            return
        middle = len(records) // 2
        self._undelivered.extendleft([records[middle:], records[:middle]])

    def _observe(self, batch: list[Noted]) -> None:
        for noted in batch:
            self._predictions.labels(noted.route.deployment, str(noted.status_code)).inc()
            if noted.status_code == 0:
                self._latency.labels(noted.route.deployment).observe(noted.latency_ns / 1e9)


def _messages(batch: list[Noted]) -> list[list[PredictionRecord]]:
    """The batch's records, in messages that a service takes."""
    messages: list[list[PredictionRecord]] = [[]]
    size = 0
    for record in map(_record, batch):
        size += record.ByteSize()
        if size > MAX_MESSAGE_BYTES and messages[-1]:
            messages.append([])
            size = record.ByteSize()
        messages[-1].append(record)
    return messages


def _record(noted: Noted) -> PredictionRecord:
    route = noted.route
    arrived = Timestamp()
    arrived.FromNanoseconds(noted.arrived_ns)
    latency = Duration()
    latency.FromNanoseconds(noted.latency_ns)
    return PredictionRecord(
        prediction_id=noted.prediction_id,
        client_request_id=noted.client_request_id,
        caller=noted.caller,
        deployment=f"deployments/{route.deployment}",
        model_version=f"models/{route.target.model}/versions/{route.target.version}",
        digest=route.target.digest,
        request_time=arrived,
        latency=latency,
        status_code=noted.status_code,
        predicted_labels=_labels(noted),
    )


def _labels(noted: Noted) -> list[str]:
    if not noted.answer or not noted.route.target.label_output:
        return []
    try:
        return predicted_labels(noted.answer, noted.route.target.label_output)
    except Exception as error:  # noqa: BLE001 - an odd answer must not hold up the others' records
        log.warning("labels_unreadable", deployment=noted.route.deployment, error=type(error).__name__)
        return []


class ReportingSink:
    """Sends batches to the reporting service. `metadata` makes fresh credentials for each."""

    TIMEOUT = 10.0

    def __init__(self, stub: Any, metadata: Any) -> None:
        self._stub = stub
        self._metadata = metadata

    async def store(self, records: list[PredictionRecord]) -> None:
        """One IngestPredictions call."""
        request = IngestPredictionsRequest(records=records)
        try:
            await self._stub.IngestPredictions(request, metadata=self._metadata(), timeout=self.TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED):
                raise RefusedError from error
            raise
