"""Reports that take long hold up neither each other's callers nor those who write."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest
import sqlalchemy as sa

from inferplane.server.reporting import service
from inferplane.server.reporting.metrics import VersionMetrics
from inferplane.server.reporting.predictions import TimeSpan
from inferplane.server.reporting.repository import ReportReader
from inferplane.server.settings import ServiceName, Settings
from tests.integration.reporting.records import Reporting, record
from tests.support.mesh import error_info, failure, reason, running_mesh, until

OVERLOADED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")


class Reports:
    """Reports that end when they are told to, each on a connection; `at_work` of them now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = asyncio.Event()
        self.at_work = 0
        read = ReportReader.metrics

        async def slow(
            reader: ReportReader, model: str, span: TimeSpan, quantiles: Sequence[float]
        ) -> list[VersionMetrics]:
            versions = await read(reader, model, span, quantiles)
            self.at_work += 1
            await self.go_on.wait()
            self.at_work -= 1
            return versions

        monkeypatch.setattr(ReportReader, "metrics", slow)


async def test_reports_that_take_long_leave_connections_to_ingestion(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = Reports(monkeypatch)
    # With as many again where it overflows.
    small = settings.model_copy(update={"database_pool_size": 2})
    async with running_mesh(small, ServiceName.AUTH, ServiceName.REPORTING) as mesh:
        reporting = Reporting(mesh, await mesh.login())
        users = [await mesh.user(name, auditor="*") for name in ("alice", "bob", "carol", "dave")]
        calls = [asyncio.ensure_future(reporting.metrics(metadata=user)) for user in users]
        await until(lambda: reports.at_work >= service.REPORTS)
        assert (await reporting.ingest(record())).stored_count == 1
        assert reports.at_work == service.REPORTS
        reports.go_on.set()
        await asyncio.gather(*calls)


async def test_a_caller_has_one_report_at_a_time_and_few_waiting(
    reporting: Reporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = Reports(monkeypatch)
    allowed = 1 + service.REPORTS_WAITING_EACH
    calls = [asyncio.ensure_future(reporting.metrics()) for _ in range(allowed + 1)]
    done, waiting = await asyncio.wait(calls, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = done
    assert await reason(refused) == OVERLOADED
    assert reports.at_work <= 1
    reports.go_on.set()
    await asyncio.gather(*waiting)


async def test_a_report_that_takes_too_long_says_so_and_is_not_asked_for_again(
    reporting: Reporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(reader: ReportReader, *_arguments: object) -> list[VersionMetrics]:
        await reader._connection.execute(sa.text("SELECT pg_sleep(20)"))
        return []

    monkeypatch.setattr(ReportReader, "metrics", slow)
    monkeypatch.setattr(service, "REPORT_SECONDS", 0.2)
    error = await failure(reporting.metrics())
    assert (error.code(), error_info(error).reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert "shorter time_range" in (error.details() or "")
