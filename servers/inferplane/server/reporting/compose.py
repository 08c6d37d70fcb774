"""Puts the reporting service together."""

from inferplane.reporting.v1 import reporting_service_pb2_grpc
from inferplane.server.bootstrap import DATABASE, Core
from inferplane.server.reporting.feedback import Feedback
from inferplane.server.reporting.service import REPORTS, ReportingService
from inferplane.server.rpc.pipeline import at_most

__all__ = ["compose"]


async def compose(core: Core) -> None:
    """Register ReportingService."""
    # The pool may grow to twice its size, so a report never takes the last connection.
    reports = min(REPORTS, core.settings.database_pool_size)
    reporting = ReportingService(Feedback(), core.database, core.units_of_work, reports)
    large = at_most(core.settings.max_message_size)
    core.server.add_service(
        reporting_service_pb2_grpc.add_ReportingServiceServicer_to_server,
        reporting,
        (DATABASE,),
        checks={"IngestPredictions": large, "SubmitFeedback": large},
    )
