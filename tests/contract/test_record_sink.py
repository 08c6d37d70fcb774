"""What every sink of prediction records promises: the one in memory that tests use, and Reporting itself."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from sqlalchemy import URL

from inferplane.reporting.v1.prediction_pb2 import PredictionRecord
from inferplane.reporting.v1.reporting_service_pb2_grpc import ReportingServiceStub
from inferplane.server.inference.records.delivery import RecordSink, RefusedError, ReportingSink
from inferplane.server.settings import ServiceName, Settings
from tests.integration.reporting.records import Reporting, record
from tests.support.database import rows
from tests.support.mesh import running_mesh
from tests.support.record_sink import Sink


class Bench:
    """A sink, what it holds, and a record that it will never take."""

    def __init__(
        self, sink: RecordSink, stored: Callable[[], Awaitable[list[str]]], spoilt: PredictionRecord, away: RecordSink
    ) -> None:
        self.sink = sink
        self.stored = stored
        self.spoilt = spoilt
        self.away = away


@pytest.fixture(params=["memory", "reporting"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "memory":
        sink, away, spoilt = Sink(), Sink(), record()
        sink.refuses, away.failures = {spoilt.prediction_id}, 1

        async def kept() -> list[str]:
            return sorted(sink.stored)

        yield Bench(sink, kept, spoilt, away)
        return
    settings: Settings = request.getfixturevalue("settings")
    url: URL = request.getfixturevalue("database_url")
    async with (
        running_mesh(settings, ServiceName.AUTH, ServiceName.REPORTING) as mesh,
        # Nobody listens on the port of discard (RFC 863), and only root might.
        grpc.aio.insecure_channel("127.0.0.1:9") as nowhere,
    ):
        reporting = Reporting(mesh, await mesh.login())

        async def found() -> list[str]:
            return sorted(str(row["id"]) for row in await rows(url, "SELECT id FROM reporting.prediction"))

        def metadata() -> Any:
            return reporting.inference

        there, not_there = (
            ReportingSink(reporting.stub, metadata),
            ReportingSink(ReportingServiceStub(nowhere), metadata),
        )
        yield Bench(there, found, record(status_code=99), not_there)


def ids(*records: PredictionRecord) -> list[str]:
    return sorted(record.prediction_id for record in records)


async def test_what_was_stored_is_there(bench: Bench) -> None:
    batch = [record(), record()]
    await bench.sink.store(batch)
    assert await bench.stored() == ids(*batch)


async def test_what_is_stored_again_is_there_once(bench: Bench) -> None:
    first, second = record(), record()
    await bench.sink.store([first])
    await bench.sink.store([first, second])
    assert await bench.stored() == ids(first, second)


async def test_nothing_is_stored_of_a_batch_with_a_record_that_is_not_valid(bench: Bench) -> None:
    with pytest.raises(RefusedError):
        await bench.sink.store([record(), bench.spoilt])
    assert await bench.stored() == []


async def test_a_sink_that_is_away_does_not_refuse(bench: Bench) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, it says nothing about the batch
        await bench.away.store([record()])
    assert not isinstance(caught.value, RefusedError)
