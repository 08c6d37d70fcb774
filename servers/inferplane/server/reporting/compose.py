"""Puts the reporting service together."""

from inferplane.reporting.v1 import reporting_service_pb2_grpc
from inferplane.server.bootstrap import DATABASE, Core
from inferplane.server.reporting.service import ReportingService

__all__ = ["compose"]


async def compose(core: Core) -> None:
    """Register ReportingService."""
    reporting = ReportingService(core.database, core.units_of_work)
    core.server.add_service(reporting_service_pb2_grpc.add_ReportingServiceServicer_to_server, reporting, (DATABASE,))
