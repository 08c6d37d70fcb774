"""How often versions were right, by the labels received."""

import random
from typing import NamedTuple

import pytest
from sklearn.metrics import accuracy_score

from inferplane.reporting.v1.prediction_pb2 import PredictionRecord
from inferplane.reporting.v1.report_pb2 import TimeRange, VersionQuality
from tests.integration.reporting.records import Reporting, at, by_id, record, seeded


class Batch(NamedTuple):
    """A prediction, and the right classes where they are told."""

    prediction: PredictionRecord
    labels: list[str] | None


async def report(reporting: Reporting, *batches: Batch) -> list[VersionQuality]:
    await reporting.ingest(*(batch.prediction for batch in batches))
    entries = [by_id(batch.prediction, *batch.labels) for batch in batches if batch.labels is not None]
    if entries:
        await reporting.feedback(*entries)
    return list((await reporting.quality()).versions)


def counts(quality: VersionQuality) -> tuple[int, int, int]:
    return quality.row_count, quality.labelled_count, quality.correct_count


def random_batch(randomness: random.Random, version: int) -> Batch:
    classes = ["0", "1", "2", "ä", "two words", '"', ""]
    predicted = randomness.choices(classes, k=randomness.randrange(1, 20))
    told = [label if randomness.random() < 0.7 else randomness.choice(classes) for label in predicted]
    return Batch(record(predicted, version=version), told if randomness.random() < 0.6 else None)


@pytest.mark.parametrize("seed", range(5))
async def test_accuracy_is_that_of_scikit_learn(reporting: Reporting, seed: int) -> None:
    randomness = seeded(seed)
    by_version = {version: [random_batch(randomness, version) for _ in range(60)] for version in (3, 2, 1)}
    reports = await report(reporting, *(batch for batches in by_version.values() for batch in batches))
    assert [quality.model_version[-1] for quality in reports] == ["3", "2", "1"]
    for quality, batches in zip(reports, by_version.values(), strict=True):
        labelled = [(b.prediction, b.labels) for b in batches if b.labels is not None]
        true = [label for _, labels in labelled for label in labels]
        predicted = [label for prediction, _ in labelled for label in prediction.predicted_labels]
        assert quality.accuracy == accuracy_score(true, predicted)
        assert counts(quality) == (
            sum(len(batch.prediction.predicted_labels) for batch in batches),
            len(true),
            accuracy_score(true, predicted, normalize=False),
        )


async def test_without_labels_there_is_no_accuracy(reporting: Reporting) -> None:
    (quality,) = await report(reporting, Batch(record(["3", "5"]), None))
    assert counts(quality) == (2, 0, 0)
    assert not quality.HasField("accuracy")


async def test_all_wrong_is_an_accuracy_of_zero(reporting: Reporting) -> None:
    (quality,) = await report(reporting, Batch(record(["3", "5"]), ["5", "3"]))
    assert counts(quality) == (2, 2, 0)
    assert quality.HasField("accuracy")
    assert quality.accuracy == 0


async def test_labels_are_compared_as_text(reporting: Reporting) -> None:
    predicted, told = ["1", "a", "é", "7"], ["1.0", "A", "e\u0301", "7"]
    (quality,) = await report(reporting, Batch(record(predicted), told))
    assert counts(quality) == (4, 4, 1)


async def test_rows_of_failed_calls_do_not_count(reporting: Reporting) -> None:
    (quality,) = await report(reporting, Batch(record(), ["7"]), Batch(record(["1", "2"], status_code=13), None))
    assert counts(quality) == (1, 1, 1)


async def test_a_version_that_only_failed_is_left_out(reporting: Reporting) -> None:
    reports = await report(reporting, Batch(record(version=1), None), Batch(record(version=2, status_code=14), None))
    assert [quality.model_version for quality in reports] == ["models/digits/versions/1"]


async def test_a_version_without_a_label_output_has_no_rows(reporting: Reporting) -> None:
    (quality,) = await report(reporting, Batch(record([]), None))
    assert counts(quality) == (0, 0, 0)


async def test_a_span_is_of_predictions_and_not_of_labels(reporting: Reporting) -> None:
    early, late = record(["1"], request_time=at(0)), record(["1"], request_time=at(60))
    await report(reporting, Batch(early, ["1"]), Batch(late, ["2"]))
    (quality,) = (await reporting.quality(time_range=TimeRange(end_time=at(60)))).versions
    assert counts(quality) == (1, 1, 1)


async def test_the_same_labels_again_do_not_count_again(reporting: Reporting) -> None:
    batch = Batch(record(["1", "2"]), ["1", "3"])
    await report(reporting, batch)
    (quality,) = await report(reporting, batch)
    assert counts(quality) == (2, 2, 1)
