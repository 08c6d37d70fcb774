"""Labels find their prediction, fit it, are given once, and all or none."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from sqlalchemy import URL

from inferplane.reporting.v1 import reporting_service_pb2 as pb
from inferplane.reporting.v1.prediction_pb2 import Feedback
from inferplane.server.ids import uuid7
from inferplane.server.limits import MAX_LABELS
from inferplane.server.reporting import repository
from inferplane.server.reporting.feedback import MAX_ANSWER_LABELS
from tests.integration.reporting.records import Reporting, bad_fields, by_client_id, by_id, record, two_waiting
from tests.support.database import rows
from tests.support.mesh import ADMIN, detail, error_info, failure, reason

NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "PREDICTION_NOT_FOUND")
AMBIGUOUS = (grpc.StatusCode.FAILED_PRECONDITION, "PREDICTION_AMBIGUOUS")
CONFLICT = (grpc.StatusCode.ALREADY_EXISTS, "FEEDBACK_CONFLICT")


async def stored(url: URL) -> list[tuple[Any, ...]]:
    return await rows(url, "SELECT prediction_id::text, labels FROM reporting.feedback ORDER BY 1")


async def events(url: URL) -> list[tuple[Any, ...]]:
    return await rows(url, "SELECT action, actor, resource FROM reporting.audit_event WHERE service = 'reporting'")


async def test_labels_are_stored_with_their_giver(reporting: Reporting, database_url: URL) -> None:
    prediction = record(["3", "5"])
    await reporting.ingest(prediction)
    assert (await reporting.feedback(by_id(prediction, "3", "8"))).stored_count == 1
    query = "SELECT prediction_id::text, labels, correct_count, submitter FROM reporting.feedback"
    assert await rows(database_url, query) == [(prediction.prediction_id, ["3", "8"], 1, f"users/{ADMIN}")]


async def test_a_prediction_is_found_by_the_clients_own_id(reporting: Reporting, database_url: URL) -> None:
    prediction = record(client_request_id="r1")
    await reporting.ingest(prediction, record(client_request_id="r2"))
    await reporting.feedback(by_client_id("r1", "7"))
    assert await stored(database_url) == [(prediction.prediction_id, ["7"])]


async def test_an_id_in_capitals_is_the_same_id(reporting: Reporting) -> None:
    prediction = record()
    await reporting.ingest(prediction)
    entry = Feedback(prediction_id=prediction.prediction_id.upper(), labels=["7"])
    assert (await reporting.feedback(entry)).stored_count == 1


async def test_an_unknown_id_is_not_found_and_worth_a_retry(reporting: Reporting) -> None:
    missing = str(uuid7())
    known = record()
    await reporting.ingest(known)
    error = await failure(reporting.feedback(by_id(known, "7"), Feedback(prediction_id=missing, labels=["1"])))
    info = error_info(error)
    assert (error.code(), info.reason) == NOT_FOUND
    assert (info.metadata["prediction_id"], info.metadata["detail"]) == (missing, "feedback[1]")
    assert detail(error, error_details_pb2.RetryInfo())


async def test_an_unknown_id_of_the_client_is_not_found(reporting: Reporting) -> None:
    error = await failure(reporting.feedback(by_client_id("r1", "1")))
    assert error_info(error).reason == "PREDICTION_NOT_FOUND"
    assert error_info(error).metadata["client_request_id"] == "r1"


@pytest.mark.parametrize("key", ["prediction_id", "client_request_id"])
async def test_a_prediction_of_another_deployment_is_not_found(reporting: Reporting, key: str) -> None:
    prediction = record(deployment="deployments/other", client_request_id="r1")
    await reporting.ingest(prediction)
    entry = by_id(prediction, "7") if key == "prediction_id" else by_client_id("r1", "7")
    assert await reason(reporting.feedback(entry)) == NOT_FOUND


async def test_a_clients_id_used_twice_is_ambiguous(reporting: Reporting) -> None:
    twins = [record(client_request_id="r1") for _ in range(2)]
    await reporting.ingest(*twins)
    error = await failure(reporting.feedback(by_client_id("r1", "7")))
    assert (error.code(), error_info(error).reason) == AMBIGUOUS
    assert (await reporting.feedback(by_id(twins[1], "7"))).stored_count == 1


async def test_a_clients_id_is_ambiguous_within_a_deployment_only(reporting: Reporting) -> None:
    await reporting.ingest(
        record(client_request_id="r1"), record(client_request_id="r1", deployment="deployments/other")
    )
    assert (await reporting.feedback(by_client_id("r1", "7"))).stored_count == 1


async def test_a_retry_after_failed_calls_is_not_ambiguous(reporting: Reporting, database_url: URL) -> None:
    failed = [record([], client_request_id="r1", status_code=14) for _ in range(3)]
    succeeded = record(client_request_id="r1")
    await reporting.ingest(*failed, succeeded)
    await reporting.feedback(by_client_id("r1", "7"))
    assert await stored(database_url) == [(succeeded.prediction_id, ["7"])]


@pytest.mark.parametrize("key", ["prediction_id", "client_request_id"])
async def test_a_failed_call_takes_no_label(reporting: Reporting, key: str) -> None:
    failed = [record(client_request_id="r1", status_code=13) for _ in range(2)]
    await reporting.ingest(*failed)
    entry = by_id(failed[0], "7") if key == "prediction_id" else by_client_id("r1", "7")
    assert await bad_fields(reporting.feedback(entry)) == [f"feedback[0].{key}"]


@pytest.mark.parametrize("labels", [["3"], ["3", "5", "7"], []])
async def test_the_number_of_labels_must_be_that_of_the_rows(
    reporting: Reporting, database_url: URL, labels: list[str]
) -> None:
    fine, prediction = record(), record(["3", "5"])
    await reporting.ingest(fine, prediction)
    call = reporting.feedback(by_id(fine, "7"), by_id(fine, "7"), by_id(fine, "7"), by_id(prediction, *labels))
    assert await bad_fields(call) == ["feedback[3].labels"]
    assert not await stored(database_url)


async def test_a_version_without_a_label_output_takes_no_labels(reporting: Reporting) -> None:
    prediction = record([])
    await reporting.ingest(prediction)
    error = await failure(reporting.feedback(by_id(prediction, "7")))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "feedback[0].labels cannot be compared: the version that answered names no label output" in str(error)


async def test_the_same_labels_again_change_nothing(reporting: Reporting, database_url: URL) -> None:
    prediction, new = record(["3"]), record(["5"])
    await reporting.ingest(prediction, new)
    await reporting.feedback(by_id(prediction, "4"))
    before = await rows(database_url, "SELECT * FROM reporting.feedback")
    assert (await reporting.feedback(by_id(prediction, "4"))).stored_count == 0
    assert await rows(database_url, "SELECT * FROM reporting.feedback") == before
    assert (await reporting.feedback(by_id(prediction, "4"), by_id(new, "5"))).stored_count == 1


async def test_other_labels_than_before_conflict_and_store_nothing(reporting: Reporting, database_url: URL) -> None:
    new, prediction = record(), record(["3", "5"])
    await reporting.ingest(new, prediction)
    await reporting.feedback(by_id(prediction, "3", "5"))
    error = await failure(reporting.feedback(by_id(new, "7"), by_id(prediction, "5", "3")))
    info = error_info(error)
    assert (error.code(), info.reason) == CONFLICT
    assert (info.metadata["prediction_id"], info.metadata["detail"]) == (prediction.prediction_id, "feedback[1]")
    assert await stored(database_url) == [(prediction.prediction_id, ["3", "5"])]


async def test_one_unknown_prediction_stores_nothing(reporting: Reporting, database_url: URL) -> None:
    prediction = record()
    await reporting.ingest(prediction)
    await failure(reporting.feedback(by_id(prediction, "7"), by_client_id("r1", "7")))
    assert not await stored(database_url)
    assert not await events(database_url)


async def test_one_prediction_named_twice_alike_counts_once(reporting: Reporting, database_url: URL) -> None:
    prediction = record(client_request_id="r1")
    await reporting.ingest(prediction)
    assert (await reporting.feedback(by_id(prediction, "7"), by_client_id("r1", "7"))).stored_count == 1
    assert await stored(database_url) == [(prediction.prediction_id, ["7"])]


async def test_one_prediction_named_twice_with_other_labels_is_refused(reporting: Reporting, database_url: URL) -> None:
    prediction = record(client_request_id="r1")
    await reporting.ingest(prediction)
    call = reporting.feedback(by_id(prediction, "7"), by_client_id("r1", "8"))
    assert await bad_fields(call) == ["feedback[1].labels"]
    assert not await stored(database_url)


async def test_a_request_leaves_one_audit_event(reporting: Reporting, database_url: URL) -> None:
    batch = [record() for _ in range(5)]
    await reporting.ingest(*batch)
    await reporting.feedback(*(by_id(prediction, "7") for prediction in batch))
    assert await events(database_url) == [("feedback.submit", f"users/{ADMIN}", "deployments/digits")]


async def test_the_largest_request_is_stored_and_a_larger_or_empty_one_refused(reporting: Reporting) -> None:
    batch = [record() for _ in range(1001)]
    await reporting.ingest(*batch)
    entries = [by_id(prediction, "7") for prediction in batch]
    assert await bad_fields(reporting.feedback(*entries)) == ["feedback"]
    assert await bad_fields(reporting.feedback()) == ["feedback"]
    assert (await reporting.feedback(*entries[:1000])).stored_count == 1000


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        (Feedback(labels=["7"]), "feedback[0]"),
        (Feedback(prediction_id="", labels=["7"]), "feedback[0].prediction_id"),
        (Feedback(prediction_id="r1", labels=["7"]), "feedback[0].prediction_id"),
        (Feedback(client_request_id="", labels=["7"]), "feedback[0].client_request_id"),
        (Feedback(client_request_id="r" * 129, labels=["7"]), "feedback[0].client_request_id"),
        (Feedback(client_request_id="a\0", labels=["7"]), "feedback[0].client_request_id"),
        (Feedback(client_request_id="r1", labels=["a\0"]), "feedback[0].labels"),
        (Feedback(client_request_id="r1", labels=["a" * 257]), "feedback[0].labels"),
        (Feedback(client_request_id="r1", labels=["a"] * 10_001), "feedback[0].labels"),
    ],
)
async def test_a_bad_entry_is_refused_by_its_path(reporting: Reporting, entry: Feedback, path: str) -> None:
    assert await bad_fields(reporting.feedback(entry)) == [path]


@pytest.mark.parametrize("name", ["", "digits", "models/digits", "deployments/digits/x", "deployments/"])
async def test_a_bad_deployment_is_refused(reporting: Reporting, name: str) -> None:
    request = pb.SubmitFeedbackRequest(deployment=name, feedback=[by_client_id("r1", "7")])
    assert await bad_fields(reporting.stub.SubmitFeedback(request, metadata=reporting.admin)) == ["deployment"]


async def test_requests_that_share_predictions_in_opposite_orders_do_not_deadlock(
    reporting: Reporting, database_url: URL
) -> None:
    batch = [record() for _ in range(3)]
    # Among many, or the database reads all of them in their own order whatever it is asked for.
    await reporting.ingest(*batch, *(record() for _ in range(1997)))
    await rows(database_url, "ANALYZE reporting.prediction")
    entries = [by_id(prediction, "7") for prediction in batch]
    occupy = "INSERT INTO reporting.feedback VALUES ($1, '{7}', 1, now(), '')"
    async with two_waiting(database_url, occupy, batch[1].prediction_id):
        calls = asyncio.gather(reporting.feedback(*entries), reporting.feedback(*reversed(entries)))
    assert sorted(answer.stored_count for answer in await calls) == [0, 3]


async def test_of_contradicting_requests_at_once_one_wins(reporting: Reporting, database_url: URL) -> None:
    batch = [record() for _ in range(100)]
    await reporting.ingest(*batch)
    calls = [reporting.feedback(*(by_id(prediction, label) for prediction in batch)) for label in "0123"]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    losers = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert [error_info(error).reason for error in losers] == ["FEEDBACK_CONFLICT"] * 3
    assert len({tuple(labels) for _, labels in await stored(database_url)}) == 1


async def test_a_request_holds_a_bounded_number_of_labels(reporting: Reporting) -> None:
    predictions = [record() for _ in range(MAX_ANSWER_LABELS // MAX_LABELS + 1)]
    entries = [by_id(prediction, *["7"] * MAX_LABELS) for prediction in predictions]
    assert await bad_fields(reporting.feedback(*entries)) == ["feedback"]


async def test_labels_are_written_out_once_and_off_the_loop(
    reporting: Reporting, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = record()
    await reporting.ingest(prediction)
    await reporting.feedback(by_id(prediction, "7"))
    threads: list[int] = []
    literal = repository._array_literal

    def noted(labels: Sequence[str]) -> str:
        threads.append(threading.get_ident())
        return literal(labels)

    monkeypatch.setattr(repository, "_array_literal", noted)
    await reporting.feedback(by_id(prediction, "7"))
    (thread,) = threads
    assert thread != threading.get_ident()
