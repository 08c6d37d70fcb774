"""Puts the reporting service together."""

from inferplane.reporting.v1 import reporting_service_pb2_grpc
from inferplane.server.bootstrap import DATABASE, Core
from inferplane.server.reporting.feedback import Feedback
from inferplane.server.reporting.service import ReportingService
from inferplane.server.rpc.pipeline import at_most

__all__ = ["compose"]


async def compose(core: Core) -> None:
    """Register ReportingService."""
    reporting = ReportingService(Feedback(), core.database, core.units_of_work)
    large = at_most(core.settings.max_message_size)
    core.server.add_service(
        reporting_service_pb2_grpc.add_ReportingServiceServicer_to_server,
        reporting,
        (DATABASE,),
        checks={"IngestPredictions": large, "SubmitFeedback": large},
    )
