"""Reporting's RPCs: from message to domain call to message."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from inferplane.reporting.v1 import reporting_service_pb2 as pb
from inferplane.reporting.v1 import reporting_service_pb2_grpc
from inferplane.server.fairness import FairGate
from inferplane.server.reporting import metrics
from inferplane.server.reporting.convert import metrics_message, quality_message
from inferplane.server.reporting.feedback import Feedback
from inferplane.server.reporting.inputs import answers_of, deployment_of, model_of, predictions_of, span_of
from inferplane.server.reporting.repository import (
    FeedbackRepository,
    PredictionRepository,
    ReportReader,
    bounded_reader,
)
from inferplane.server.rpc.call import current_call
from inferplane.server.storage.database import Database
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory

__all__ = ["ReportingService"]


REPORTS = 2
"""Reports that are made at once, one of a caller: the other connections are left to those who write."""
REPORT_SECONDS = 10.0
REPORTS_WAITING = 32
REPORTS_WAITING_EACH = 4


class ReportingService(reporting_service_pb2_grpc.ReportingServiceServicer):
    """Prediction records, their labels, and what they add up to."""

    def __init__(
        self, feedback: Feedback, database: Database, units_of_work: UnitOfWorkFactory, reports: int = REPORTS
    ) -> None:
        self._feedback = feedback
        self._database = database
        self._units_of_work = units_of_work
        self._reports = FairGate(
            "too many reports at once, of this caller or of all",
            capacity=reports,
            each=1,
            waiting=REPORTS_WAITING,
            waiting_each=REPORTS_WAITING_EACH,
        )

    async def IngestPredictions(
        self, request: pb.IngestPredictionsRequest, context: Any
    ) -> pb.IngestPredictionsResponse:
        # Off the loop: to check a full batch takes 27 ms, and far more where it is full of labels.
        records = await asyncio.to_thread(predictions_of, request.records)
        # No unit of work: a record is itself the trace of a call, so an audit event about it would say it twice, and
        # its id makes a retry harmless without a stored answer.
        async with self._database.transaction() as connection:
            stored = await PredictionRepository(connection).add(records)
            await connection.commit()
        return pb.IngestPredictionsResponse(stored_count=stored)

    async def SubmitFeedback(self, request: pb.SubmitFeedbackRequest, context: Any) -> pb.SubmitFeedbackResponse:
        deployment = deployment_of(request)
        answers = await asyncio.to_thread(answers_of, request.feedback)
        actor = current_call().actor
        async with self._units_of_work(actor) as unit:
            stored = await self._feedback.submit(FeedbackRepository(unit), deployment, answers, actor.subject)
            await unit.commit()
        return pb.SubmitFeedbackResponse(stored_count=stored)

    async def QueryMetrics(self, request: pb.QueryMetricsRequest, context: Any) -> pb.QueryMetricsResponse:
        model, span = model_of(request), span_of(request.time_range)
        quantiles = metrics.wanted_quantiles(request.quantiles)
        async with self._reader() as reader:
            versions = await reader.metrics(model, span, quantiles)
        return pb.QueryMetricsResponse(versions=[metrics_message(version, quantiles) for version in versions])

    async def GetQualityReport(self, request: pb.GetQualityReportRequest, context: Any) -> pb.GetQualityReportResponse:
        model, span = model_of(request), span_of(request.time_range)
        async with self._reader() as reader:
            versions = await reader.quality(model, span)
        return pb.GetQualityReportResponse(versions=[quality_message(version) for version in versions])

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[ReportReader]:
        """A reader when it is the caller's turn; raises OVERLOADED at once where too many reports wait."""
        caller = current_call().principal.subject
        await self._reports.enter(caller, 1)
        try:
            async with (
                self._database.transaction() as connection,
                bounded_reader(connection, REPORT_SECONDS) as reader,
            ):
                yield reader
        finally:
            self._reports.leave(caller, 1)
