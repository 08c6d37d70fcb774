"""Calls, errors and latency by version."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from inferplane.reporting.v1 import reporting_service_pb2 as pb
from inferplane.reporting.v1.prediction_pb2 import PredictionRecord
from inferplane.reporting.v1.report_pb2 import TimeRange, VersionMetrics
from inferplane.server.ids import now
from tests.integration.reporting.records import Reporting, at, bad_fields, record, seeded


def took(microseconds: int, **fields: Any) -> PredictionRecord:
    latency = Duration()
    latency.FromMicroseconds(microseconds)
    return record(latency=latency, **fields)


def latencies(metrics: VersionMetrics) -> list[int]:
    return [quantile.latency.ToMicroseconds() for quantile in metrics.latency_quantiles]


async def test_versions_are_counted_newest_first(reporting: Reporting) -> None:
    calls = [record(version=version) for version, count in ((2, 3), (10, 1), (9, 2)) for _ in range(count)]
    await reporting.ingest(*calls)
    versions = (await reporting.metrics()).versions
    assert [(v.model_version, v.call_count) for v in versions] == [
        ("models/digits/versions/10", 1),
        ("models/digits/versions/9", 2),
        ("models/digits/versions/2", 3),
    ]


async def test_the_digest_that_answered_is_named(reporting: Reporting) -> None:
    digest = "sha256:" + "ab" * 32
    await reporting.ingest(record(digest=digest))
    assert [version.digest for version in (await reporting.metrics()).versions] == [digest]


async def test_failed_calls_count_as_calls_and_as_errors(reporting: Reporting) -> None:
    await reporting.ingest(*(record(status_code=code) for code in (0, 0, 3, 14)))
    (version,) = (await reporting.metrics()).versions
    assert (version.call_count, version.error_count) == (4, 2)


async def test_latency_is_that_of_the_calls_that_succeeded(reporting: Reporting) -> None:
    await reporting.ingest(took(1000), took(9000, status_code=14))
    (version,) = (await reporting.metrics(quantiles=[0.999])).versions
    assert latencies(version) == [1000]


async def test_a_version_that_only_failed_has_no_latency(reporting: Reporting) -> None:
    await reporting.ingest(record(status_code=14))
    (version,) = (await reporting.metrics()).versions
    assert (version.call_count, version.error_count, latencies(version)) == (1, 1, [])


async def test_the_usual_quantiles_are_given_where_none_are_asked_for(reporting: Reporting) -> None:
    await reporting.ingest(*(took(microseconds) for microseconds in range(1, 101)))
    (version,) = (await reporting.metrics()).versions
    assert [quantile.quantile for quantile in version.latency_quantiles] == [0.5, 0.9, 0.99]
    assert latencies(version) == [50, 90, 99]


async def test_quantiles_come_in_the_order_asked_for(reporting: Reporting) -> None:
    await reporting.ingest(*(took(microseconds) for microseconds in range(1, 11)))
    (version,) = (await reporting.metrics(quantiles=[0.9, 0.1, 0.9])).versions
    assert [quantile.quantile for quantile in version.latency_quantiles] == [0.9, 0.1, 0.9]
    assert latencies(version) == [9, 1, 9]


@pytest.mark.parametrize("seed", range(5))
async def test_quantiles_are_those_of_the_inverted_distribution(reporting: Reporting, seed: int) -> None:
    randomness = seeded(seed)
    quantiles = [randomness.random() for _ in range(12)] + [0.25, 0.5, 0.75, 1 - 1e-12]
    # Few values for many calls in some, so that equal latencies meet.
    ceiling = randomness.choice([10, 1_000_000, 86_399_999_999])
    by_version = {
        version: [randomness.randrange(ceiling) for _ in range(randomness.randrange(1, 400))] for version in (1, 2, 3)
    }
    await reporting.ingest(*(took(value, version=version) for version in by_version for value in by_version[version]))
    for version, metrics in zip((3, 2, 1), (await reporting.metrics(quantiles=quantiles)).versions, strict=True):
        expected = np.quantile(by_version[version], quantiles, method="inverted_cdf")
        assert latencies(metrics) == expected.astype(int).tolist()


async def test_a_quantile_is_what_numpy_calls_a_percentile(reporting: Reporting) -> None:
    values = [5, 1, 4, 4, 9, 2, 7]
    await reporting.ingest(*(took(value) for value in values))
    (version,) = (await reporting.metrics(quantiles=[0.5, 0.75, 0.875])).versions
    assert latencies(version) == np.percentile(values, [50, 75, 87.5], method="inverted_cdf").tolist()


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.5, 1.5, float("nan"), float("inf")])
async def test_a_quantile_outside_its_bounds_is_refused(reporting: Reporting, quantile: float) -> None:
    assert await bad_fields(reporting.metrics(quantiles=[0.5, quantile])) == ["quantiles[1]"]


async def test_more_than_sixteen_quantiles_are_refused(reporting: Reporting) -> None:
    await reporting.ingest(record())
    assert await bad_fields(reporting.metrics(quantiles=[0.5] * 17)) == ["quantiles"]
    (version,) = (await reporting.metrics(quantiles=[0.5] * 16)).versions
    assert len(version.latency_quantiles) == 16


async def test_other_models_do_not_count(reporting: Reporting) -> None:
    await reporting.ingest(record(model_version="models/digits2/versions/1"), record(deployment="deployments/blue"))
    assert [version.call_count for version in (await reporting.metrics()).versions] == [1]


async def test_a_model_without_calls_has_no_versions(reporting: Reporting) -> None:
    assert not (await reporting.metrics()).versions


@pytest.mark.parametrize(
    ("time_range", "counted"),
    [
        (TimeRange(), 4),
        (TimeRange(start_time=at(10)), 3),
        (TimeRange(end_time=at(20)), 2),
        (TimeRange(start_time=at(10), end_time=at(30)), 2),
        (TimeRange(start_time=at(10.000001), end_time=at(20.000001)), 1),
        (TimeRange(start_time=at(10), end_time=at(10)), 0),
        (TimeRange(start_time=Timestamp(seconds=-62_135_596_800), end_time=Timestamp(seconds=253_402_300_799)), 4),
    ],
)
async def test_a_span_holds_its_start_and_not_its_end(
    reporting: Reporting, time_range: TimeRange, counted: int
) -> None:
    await reporting.ingest(*(record(request_time=at(seconds)) for seconds in (0, 10, 20, 30)))
    assert sum(v.call_count for v in (await reporting.metrics(time_range=time_range)).versions) == counted
    assert sum(v.row_count for v in (await reporting.quality(time_range=time_range)).versions) == counted


async def test_a_span_without_an_end_ends_now(reporting: Reporting) -> None:
    later = Timestamp(seconds=int(now().timestamp()) + 3600)
    await reporting.ingest(record(), record(request_time=later))
    assert [version.call_count for version in (await reporting.metrics()).versions] == [1]


async def test_a_span_that_begins_in_the_future_is_empty(reporting: Reporting) -> None:
    await reporting.ingest(record())
    later = Timestamp(seconds=int(now().timestamp()) + 3600)
    assert not (await reporting.metrics(time_range=TimeRange(start_time=later))).versions


IMPOSSIBLE: Sequence[Timestamp] = (
    Timestamp(seconds=253_402_300_800),
    Timestamp(seconds=-62_135_596_801),
    Timestamp(seconds=2**63 - 1),
    Timestamp(seconds=-(2**63)),
    Timestamp(nanos=-1),
    Timestamp(nanos=1_000_000_000),
)


@pytest.mark.parametrize("field", ["start_time", "end_time"])
async def test_an_impossible_time_is_refused_by_its_path(reporting: Reporting, field: str) -> None:
    for time in IMPOSSIBLE:
        time_range = TimeRange(**{field: time})
        assert await bad_fields(reporting.metrics(time_range=time_range)) == [f"time_range.{field}"]
        assert await bad_fields(reporting.quality(time_range=time_range)) == [f"time_range.{field}"]


async def test_an_end_before_the_start_is_refused(reporting: Reporting) -> None:
    time_range = TimeRange(start_time=at(10), end_time=at(9))
    assert await bad_fields(reporting.metrics(time_range=time_range)) == ["time_range.end_time"]
    assert await bad_fields(reporting.quality(time_range=time_range)) == ["time_range.end_time"]


@pytest.mark.parametrize("name", ["", "digits", "deployments/digits", "models/digits/versions/1", "models/"])
async def test_a_bad_model_is_refused(reporting: Reporting, name: str) -> None:
    metrics = reporting.stub.QueryMetrics(pb.QueryMetricsRequest(model=name), metadata=reporting.admin)
    assert await bad_fields(metrics) == ["model"]
    quality = reporting.stub.GetQualityReport(pb.GetQualityReportRequest(model=name), metadata=reporting.admin)
    assert await bad_fields(quality) == ["model"]
