"""Records are stored once, whole batches or nothing, and only where each field is sound."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import URL

from inferplane.server.ids import uuid7
from inferplane.server.limits import MAX_LABELS
from inferplane.server.reporting.predictions import Prediction
from inferplane.server.reporting.repository import PredictionRepository
from inferplane.server.reporting.tables import prediction
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.database import Database
from tests.integration.reporting.records import DIGEST, NOON, Reporting, bad_fields, record, seeded, two_waiting
from tests.support.database import rows
from tests.support.timing import processor_time


async def stored_ids(url: URL) -> set[str]:
    return {str(row[0]) for row in await rows(url, "SELECT id FROM reporting.prediction")}


async def test_a_record_is_kept_as_it_came(reporting: Reporting, database_url: URL) -> None:
    given = record(
        ["3", "5"],
        version=4,
        client_request_id="r1",
        latency=Duration(seconds=2, nanos=7_000),
        status_code=3,
    )
    await reporting.ingest(given)
    (row,) = await rows(
        database_url,
        "SELECT id::text, client_request_id, caller, deployment, model, version, digest, requested_at, latency_us,"
        " status_code, predicted_labels, row_count FROM reporting.prediction",
    )
    assert row == (
        given.prediction_id, "r1", "users/alice", "digits", "digits", 4, DIGEST, NOON, 2_000_007, 3, ["3", "5"], 2,
    )  # fmt: skip


async def test_a_batch_sent_again_stores_nothing(reporting: Reporting) -> None:
    batch = [record() for _ in range(10)]
    assert (await reporting.ingest(*batch)).stored_count == 10
    assert (await reporting.ingest(*batch)).stored_count == 0


async def test_only_the_new_records_of_a_batch_are_counted(reporting: Reporting) -> None:
    old, new = record(), record()
    await reporting.ingest(old)
    assert (await reporting.ingest(new, old, new)).stored_count == 1


async def test_a_record_that_is_here_stays_as_it_is(reporting: Reporting, database_url: URL) -> None:
    first = record(["3"])
    await reporting.ingest(first)
    await reporting.ingest(record(["5"], prediction_id=first.prediction_id, status_code=14))
    stored = await rows(database_url, "SELECT predicted_labels, status_code FROM reporting.prediction")
    assert stored == [(["3"], 0)]


async def test_the_largest_batch_is_stored_and_a_larger_one_refused(reporting: Reporting) -> None:
    batch = [record() for _ in range(2001)]
    assert await bad_fields(reporting.ingest(*batch)) == ["records"]
    assert (await reporting.ingest(*batch[:2000])).stored_count == 2000


async def test_a_batch_full_of_labels_costs_the_loop_little(settings: Settings) -> None:
    """Writing 1.3 million labels as arrays takes 0.17 s, and what is left 0.02 s."""
    labels = ("7",) * MAX_LABELS
    batch = [Prediction(str(uuid7()), "", "users/a", "d", "d", 1, DIGEST, NOON, 1, 0, labels) for _ in range(130)]
    database = Database(settings, ServiceName.REPORTING)
    async with database.transaction() as connection:
        with processor_time() as spent:
            assert await PredictionRepository(connection).add(batch) == len(batch)
            took = spent()
    await database.close()
    assert took < 0.09, f"{took:.3f} s"


async def test_an_empty_batch_is_no_error(reporting: Reporting) -> None:
    assert (await reporting.ingest()).stored_count == 0


async def test_one_bad_record_stores_none(reporting: Reporting, database_url: URL) -> None:
    call = reporting.ingest(record(), record(), record(status_code=17), record())
    assert await bad_fields(call) == ["records[2].status_code"]
    assert not await stored_ids(database_url)


async def test_batches_that_share_records_in_opposite_orders_do_not_deadlock(
    reporting: Reporting, database_url: URL
) -> None:
    first, middle, last = record(), record(), record()
    occupy = "INSERT INTO reporting.prediction VALUES ($1, '', '', '', '', 1, '', now(), 0, 0, '{}')"
    async with two_waiting(database_url, occupy, middle.prediction_id):
        calls = asyncio.gather(reporting.ingest(first, middle, last), reporting.ingest(last, middle, first))
    assert sorted(answer.stored_count for answer in await calls) == [0, 3]


async def test_labels_of_any_text_are_kept(reporting: Reporting, database_url: URL) -> None:
    hostile = ["", " ", '"', "\\", '\\"', "{", "}", ",", "NULL", "null", "'", "{a,b}", "\n\t\r", "é", "🙂", "a" * 256]
    hostile += ["".join(seeded(seed).choices("\\\"{},; N'\x01", k=12)) for seed in range(50)]
    await reporting.ingest(record(hostile))
    assert await rows(database_url, "SELECT predicted_labels FROM reporting.prediction") == [(hostile,)]


async def test_a_record_without_labels_is_kept(reporting: Reporting, database_url: URL) -> None:
    await reporting.ingest(record([]))
    stored = await rows(database_url, "SELECT predicted_labels, row_count FROM reporting.prediction")
    assert stored == [([], 0)]


async def test_records_leave_no_audit_events_and_no_stored_answers(reporting: Reporting, database_url: URL) -> None:
    await reporting.ingest(record())
    assert not await rows(database_url, "SELECT 1 FROM reporting.audit_event WHERE service = 'reporting'")
    assert not await rows(database_url, "SELECT 1 FROM reporting.idempotency_record")


BOUNDS: list[tuple[str, list[Any]]] = [
    ("client_request_id", ["", "r" * 128, "é" * 64]),
    ("caller", ["users/a", "workloads/inference"]),
    ("latency", [Duration(), Duration(seconds=86_399, nanos=999_999_999)]),
    ("status_code", [0, 16]),
    ("predicted_labels", [["1"] * 10_000, ["🙂" * 256]]),
    ("model_version", ["models/A.b-c_d/versions/999999999"]),
    ("prediction_id", ["01890A5D-AC96-774B-BCCE-B302099A8057"]),
    ("request_time", [Timestamp(seconds=1), Timestamp(seconds=253_402_300_799, nanos=999_999_999)]),
]


async def test_values_at_their_bounds_are_stored(reporting: Reporting) -> None:
    batch = [record(**{field: value}) for field, values in BOUNDS for value in values]
    assert (await reporting.ingest(*batch)).stored_count == len(batch)


BAD: list[tuple[str, list[Any]]] = [
    (
        "prediction_id",
        ["", "1", "01890a5dac96774bbcceb302099a8057", "{01890a5d-ac96-774b-bcce-b302099a80}", "g" * 8 + "-" * 28, "\0"],
    ),
    ("client_request_id", ["r" * 129, "é" * 65, "a\0b"]),
    ("caller", ["", "alice", "users/", "users/A", "users/a\0", "workloads/other", "workloads/", "groups/a"]),
    ("deployment", ["", "digits", "deployments/", "deployments/a b", "deployments/a/b", "models/a"]),
    (
        "model_version",
        ["", "models/a", "models/a/versions/0", "models/a/versions/1000000000", "models/a/versions/-1", "models//"],
    ),
    ("digest", ["", "sha256:", "0" * 64, "sha256:" + "0" * 63, "sha256:" + "G" * 64, "sha256:" + "0" * 65]),
    (
        "request_time",
        [
            None,
            Timestamp(),
            Timestamp(seconds=-1),
            Timestamp(seconds=253_402_300_800),
            Timestamp(seconds=2**63 - 1),
            Timestamp(seconds=5, nanos=-1),
            Timestamp(seconds=5, nanos=1_000_000_000),
        ],
    ),
    (
        "latency",
        [
            Duration(nanos=-1),
            Duration(seconds=-1),
            Duration(seconds=-1, nanos=-1),
            Duration(seconds=86_400),
            Duration(seconds=2**63 - 1),
            Duration(nanos=1_000_000_000),
            Duration(seconds=1, nanos=-1),
        ],
    ),
    ("status_code", [-1, 17, 2**31 - 1]),
    ("predicted_labels", [["1"] * 10_001, ["a" * 257], ["a\0"]]),
]


@pytest.mark.parametrize(("field", "values"), BAD, ids=[field for field, _ in BAD])
async def test_a_bad_field_is_refused_by_its_path(reporting: Reporting, field: str, values: list[Any]) -> None:
    for value in values:
        assert await bad_fields(reporting.ingest(record(), record(**{field: value}))) == [f"records[1].{field}"], value


async def test_all_bad_fields_of_a_record_are_named(reporting: Reporting) -> None:
    assert await bad_fields(reporting.ingest(record(digest="", caller=""))) == [
        "records[0].caller",
        "records[0].digest",
    ]


async def test_times_are_stored_to_the_microsecond(reporting: Reporting, database_url: URL) -> None:
    await reporting.ingest(record(request_time=Timestamp(seconds=1_700_000_000, nanos=123_456_999)))
    (row,) = await rows(database_url, "SELECT requested_at FROM reporting.prediction")
    assert row == (datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=UTC),)


def test_a_predictions_fields_are_the_columns_in_their_order() -> None:
    assert Prediction._fields == tuple(column.name for column in prediction.c if column.computed is None)
