"""Prediction records and the calls that tests make about them."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from sqlalchemy import URL

from inferplane.reporting.v1 import reporting_service_pb2 as pb
from inferplane.reporting.v1.prediction_pb2 import Feedback, PredictionRecord
from inferplane.reporting.v1.report_pb2 import TimeRange
from inferplane.reporting.v1.reporting_service_pb2_grpc import ReportingServiceStub
from inferplane.server.identity.workloads import WorkloadSigner
from inferplane.server.ids import uuid7
from inferplane.server.settings import ServiceName
from inferplane.server.storage.database import asyncpg_dsn
from tests.support.mesh import Mesh, Metadata, detail, failure

DIGEST = "sha256:" + "0" * 64
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@dataclass
class Reporting:
    """The reporting service of a mesh, as inference (`inference`) and the administrator (`admin`) call it."""

    mesh: Mesh
    admin: Metadata
    inference: Metadata = field(init=False)
    stub: Any = field(init=False)

    def __post_init__(self) -> None:
        signer = WorkloadSigner(self.mesh.settings.keys_dir, ServiceName.INFERENCE)
        self.inference = signer.metadata(ServiceName.REPORTING)
        self.stub = ReportingServiceStub(self.mesh.channels[ServiceName.REPORTING])

    def ingest(self, *records: PredictionRecord, metadata: Metadata | None = None) -> Any:
        request = pb.IngestPredictionsRequest(records=records)
        return self.stub.IngestPredictions(request, metadata=self.inference if metadata is None else metadata)

    def feedback(self, *entries: Feedback, deployment: str = "digits", metadata: Metadata | None = None) -> Any:
        request = pb.SubmitFeedbackRequest(deployment=f"deployments/{deployment}", feedback=entries)
        return self.stub.SubmitFeedback(request, metadata=metadata or self.admin)

    def metrics(
        self,
        model: str = "digits",
        quantiles: Sequence[float] = (),
        time_range: TimeRange | None = None,
        metadata: Metadata | None = None,
    ) -> Any:
        request = pb.QueryMetricsRequest(model=f"models/{model}", quantiles=quantiles, time_range=time_range)
        return self.stub.QueryMetrics(request, metadata=metadata or self.admin)

    def quality(
        self, model: str = "digits", time_range: TimeRange | None = None, metadata: Metadata | None = None
    ) -> Any:
        request = pb.GetQualityReportRequest(model=f"models/{model}", time_range=time_range)
        return self.stub.GetQualityReport(request, metadata=metadata or self.admin)


def record(labels: Sequence[str] = ("7",), *, version: int = 1, **fields: Any) -> PredictionRecord:
    """A record of a call that succeeded, but for what `fields` say."""
    defaults: dict[str, Any] = {
        "prediction_id": str(uuid7()),
        "caller": "users/alice",
        "deployment": "deployments/digits",
        "model_version": f"models/digits/versions/{version}",
        "digest": DIGEST,
        "request_time": timestamp(NOON),
        "latency": Duration(nanos=1_500_000),
        "predicted_labels": labels,
    }
    return PredictionRecord(**{**defaults, **fields})


def by_id(prediction: PredictionRecord, *labels: str) -> Feedback:
    return Feedback(prediction_id=prediction.prediction_id, labels=labels)


def by_client_id(client_request_id: str, *labels: str) -> Feedback:
    return Feedback(client_request_id=client_request_id, labels=labels)


def timestamp(when: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(when)
    return message


def at(seconds: float) -> Timestamp:
    """That many seconds after NOON."""
    return timestamp(NOON + timedelta(seconds=seconds))


def seeded(seed: int) -> random.Random:
    """Made-up data that is the same in each run."""
    return random.Random(seed)  # noqa: S311 - nothing secret


async def bad_fields(call: Any) -> list[str]:
    """The paths of the fields for which `call` is refused."""
    error = await failure(call)
    bad_request = error_details_pb2.BadRequest()
    assert detail(error, bad_request), error
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    return [violation.field for violation in bad_request.field_violations]


@asynccontextmanager
async def two_waiting(url: URL, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """Run `statement` without committing it; leaving undoes it, but not before two others wait for its locks."""
    connection = await asyncpg.connect(asyncpg_dsn(url))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(statement, *arguments)
        yield
        async with asyncio.timeout(10):
            while await connection.fetchval(waiting) < 2:
                await asyncio.sleep(0.01)
                # A transaction sees one and the same list of activities until it lets go of it.
                await connection.execute("SELECT pg_stat_clear_snapshot()")
            await transaction.rollback()
    finally:
        await connection.close()
