"""Delivers notes to Reporting as prediction records, in batches behind the calls' backs."""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import grpc
import structlog

from inferplane.reporting.v1.prediction_pb2 import PredictionRecord
from inferplane.reporting.v1.reporting_service_pb2 import IngestPredictionsRequest
from inferplane.server.inference.records.notes import BATCH, Note, Notes
from inferplane.server.names import DEPLOYMENT, VERSION
from inferplane.server.rpc.remote_errors import info_of

__all__ = ["Delivery", "RecordSink", "RefusedError", "ReportingSink"]

log = structlog.get_logger()

INTERVAL = 0.2
MAX_MESSAGE_BYTES = 1 << 20
MAX_PAUSE = 5.0
_SECOND = 1_000_000_000


class RefusedError(Exception):
    """A message will never be taken as it is: one of its records is not valid, or it is too large."""


class RecordSink(Protocol):
    """Where batches go: Reporting, or in tests a list."""

    async def store(self, records: list[PredictionRecord]) -> None:
        """Store a batch; RefusedError where it will never be taken, anything else where it must be sent again."""


class Delivery:
    """Sends what `notes` takes to `sink`. What cannot be sent now stays and is sent again, after growing pauses."""

    def __init__(self, notes: Notes, sink: RecordSink) -> None:
        self._notes = notes
        self._sink = sink
        self._turn = asyncio.Lock()
        self._undelivered: deque[list[PredictionRecord]] = deque()

    async def run(self) -> None:
        """Deliver until cancelled: every INTERVAL what there is, and at once when a batch is full."""
        pause = INTERVAL
        while True:
            await self._notes.until_due(INTERVAL)
            delivered = await self._deliver_batch()
            while delivered and len(self._notes) >= BATCH:
                delivered = await self._deliver_batch()
            pause = INTERVAL if delivered else min(2 * pause, MAX_PAUSE)
            if not delivered:
                await asyncio.sleep(pause)

    async def flush(self) -> None:
        """Deliver all that is noted now, or as much as can be; for the end: what is left is counted as dropped."""
        # The first time in any case: a batch that is being prepared is neither here nor there.
        while await self._deliver_batch() and (self._undelivered or len(self._notes)):
            pass
        if left := self._notes.in_delivery + len(self._notes):
            self._notes.dropped.inc(left)
            log.error("prediction_records_dropped", count=left, why="the service stops and Reporting does not answer")

    async def _deliver_batch(self) -> bool:
        """Deliver what was left over, or else the next batch; False where Reporting cannot take it now."""
        # A stopping service flushes while `run` may be in the middle of a batch.
        async with self._turn:
            if not self._undelivered and len(self._notes):
                # A batch must not be lost where this is cancelled meanwhile.
                await asyncio.shield(self._prepare(self._notes.batch()))
            while self._undelivered:
                if not await self._send(self._undelivered[0]):
                    return False
            return True

    async def _prepare(self, batch: list[Note]) -> None:
        # Off the loop: the labels of a thousand answers take a while.
        self._undelivered.extend(await asyncio.to_thread(_messages, batch))

    async def _send(self, records: list[PredictionRecord]) -> bool:
        try:
            await self._sink.store(records)
        except RefusedError:
            self._isolate(records)
            return True
        except Exception as error:  # noqa: BLE001 - whatever it is, the records are still here
            log.warning(
                "prediction_records_delayed",
                error=_described(error),
                waiting=len(self._notes) + self._notes.in_delivery,
            )
            return False
        self._undelivered.popleft()
        self._notes.in_delivery -= len(records)
        return True

    def _isolate(self, records: list[PredictionRecord]) -> None:
        """Halve a refused message until the record that it was refused for stands alone, and drop that one."""
        self._undelivered.popleft()
        if len(records) == 1:
            self._notes.in_delivery -= 1
            self._notes.dropped.inc()
            log.error("prediction_record_refused", prediction_id=records[0].prediction_id)
            return
        middle = len(records) // 2
        self._undelivered.extendleft([records[middle:], records[:middle]])


def _described(error: Exception) -> str:
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__


def _messages(batch: list[Note]) -> list[list[PredictionRecord]]:
    """The batch's records, in messages that a service takes."""
    messages: list[list[PredictionRecord]] = [[]]
    size = 0
    for record in map(_record, batch):
        bytes_of_it = record.ByteSize()
        size += bytes_of_it
        if size > MAX_MESSAGE_BYTES and messages[-1]:
            messages.append([])
            size = bytes_of_it
        messages[-1].append(record)
    return messages


def _record(note: Note) -> PredictionRecord:
    target = note.target
    record = PredictionRecord(
        prediction_id=note.prediction_id,
        client_request_id=note.client_request_id,
        caller=note.caller,
        deployment=_deployment_name(note.deployment),
        model_version=_version_name(target.model, target.version),
        digest=target.digest,
        status_code=note.status_code,
        predicted_labels=_labels(note),
    )
    # In place: messages made apart would be copied, which takes as long as all the rest.
    record.request_time.seconds, record.request_time.nanos = divmod(note.arrived_ns, _SECOND)
    record.latency.seconds, record.latency.nanos = divmod(note.latency_ns, _SECOND)
    return record


@lru_cache(maxsize=256)
def _deployment_name(deployment: str) -> str:
    return DEPLOYMENT.format(deployment)


@lru_cache(maxsize=256)
def _version_name(model: str, version: int) -> str:
    return VERSION.format(model, version)


def _labels(note: Note) -> list[str]:
    if note.labels is None:
        return []
    try:
        return note.labels.labels()
    except Exception as error:  # noqa: BLE001 - an odd answer must not hold up the others' records
        log.warning("labels_unreadable", deployment=note.deployment, error=type(error).__name__)
        return []


class ReportingSink:
    """Sends batches to the reporting service. `metadata` makes fresh credentials for each."""

    TIMEOUT = 10.0

    def __init__(self, stub: Any, metadata: Callable[[], Any]) -> None:
        self._stub = stub
        self._metadata = metadata

    async def store(self, records: list[PredictionRecord]) -> None:
        """One IngestPredictions call."""
        request = IngestPredictionsRequest(records=records)
        try:
            await self._stub.IngestPredictions(request, metadata=self._metadata(), timeout=self.TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if _is_refusal(error):
                raise RefusedError from error
            raise


def _is_refusal(error: grpc.aio.AioRpcError) -> bool:
    """Whether the message itself is at fault. A busy service is exhausted too, and takes the same message later."""
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        return True
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return False
    if (info := info_of(error)) is not None:
        return bool(info.reason == "MESSAGE_TOO_LARGE")
    # gRPC's own refusal of a message above its limit has no details and says so in its text.
    return "larger than max" in (error.details() or "")
