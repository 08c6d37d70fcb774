"""Prediction records reach their sink, whatever happens on the way."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from inferplane.server.access.snapshot import Target
from inferplane.server.inference.records import notes
from inferplane.server.inference.records.delivery import Delivery
from inferplane.server.inference.records.labels import LabelSource
from inferplane.server.inference.records.notes import BATCH, Note, Notes
from inferplane.server.tensors import Signature
from tests.support.record_sink import Sink

TARGET = Target("m", 1, "sha256:" + "0" * 64, Signature((), ()), "")


def note(number: int, **changes: str) -> Note:
    return Note(f"id-{number}", changes.get("client", ""), "users/alice", "d", TARGET, 1, 2, 0, None)


class Records:
    """Notes and their delivery to a sink."""

    def __init__(self, sink: Sink, registry: CollectorRegistry) -> None:
        self.notes = Notes(registry)
        self.delivery = Delivery(self.notes, sink)


def make() -> tuple[Records, Sink, CollectorRegistry]:
    sink, registry = Sink(), CollectorRegistry()
    return Records(sink, registry), sink, registry


async def test_every_note_is_delivered_once_and_in_order() -> None:
    records, sink, _ = make()
    for number in range(2 * BATCH + 1):
        records.notes.take(note(number))
    await records.delivery.flush()
    assert sink.stored == [f"id-{number}" for number in range(2 * BATCH + 1)]


async def test_what_could_not_be_delivered_is_delivered_later() -> None:
    records, sink, _ = make()
    sink.failures = 1
    records.notes.take(note(1))
    await records.delivery._deliver_batch()
    assert sink.stored == []
    records.notes.take(note(2))
    await records.delivery.flush()
    assert sink.stored == ["id-1", "id-2"]


async def test_a_refused_record_is_dropped_alone_and_counted() -> None:
    records, sink, registry = make()
    sink.refuses = {"id-3"}
    for number in range(8):
        records.notes.take(note(number))
    await records.delivery.flush()
    assert sink.stored == [f"id-{number}" for number in range(8) if number != 3]
    assert registry.get_sample_value("inferplane_prediction_records_dropped_total") == 1


async def test_a_batch_is_cut_into_messages_that_the_service_takes() -> None:
    records, sink, _ = make()
    for number in range(100):
        records.notes.take(note(number, client="c" * 50_000))
    await records.delivery.flush()
    assert len(sink.stored) == 100
    assert max(sink.calls) < 30


async def test_what_a_message_holds_back_counts_as_waiting() -> None:
    records, sink, registry = make()
    sink.failures = 1
    for number in range(5):
        records.notes.take(note(number))
    await records.delivery._deliver_batch()
    assert registry.get_sample_value("inferplane_prediction_records_waiting") == 5
    await records.delivery.flush()
    assert registry.get_sample_value("inferplane_prediction_records_waiting") == 0


async def test_what_is_left_at_the_end_is_counted_as_dropped() -> None:
    records, sink, registry = make()
    sink.failures = 1
    for number in range(5):
        records.notes.take(note(number))
    await records.delivery.flush()
    assert registry.get_sample_value("inferplane_prediction_records_dropped_total") == 5


async def test_a_batch_that_is_being_prepared_at_the_end_is_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    records, sink, registry = make()
    prepared, go_on = asyncio.Event(), asyncio.Event()
    prepare = records.delivery._prepare

    async def slowly(batch: list[Note]) -> None:
        prepared.set()
        await go_on.wait()
        await prepare(batch)

    monkeypatch.setattr(records.delivery, "_prepare", slowly)
    records.notes.take(note(1))
    running = asyncio.create_task(records.delivery._deliver_batch())
    await prepared.wait()
    flushing = asyncio.create_task(records.delivery.flush())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(running, flushing)
    assert sink.stored == ["id-1"]
    assert registry.get_sample_value("inferplane_prediction_records_dropped_total") == 0


async def test_few_notes_of_many_labels_are_bounded_too() -> None:
    records, _, registry = make()
    large = LabelSource("BYTES", (1,), bytes(40 << 20))
    for number in range(3):
        records.notes.take(note(number)._replace(labels=large))
    assert len(records.notes) == 1
    assert registry.get_sample_value("inferplane_prediction_records_dropped_total") == 2


async def test_notes_that_are_dropped_are_logged_with_their_number_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notes, "MAX_NOTES", 10)
    records, _, registry = make()
    with capture_logs() as logs:
        for number in range(15):
            records.notes.take(note(number))
        monkeypatch.setattr(notes, "DROP_LOG_INTERVAL", 0)
        records.notes.take(note(15))
    assert registry.get_sample_value("inferplane_prediction_records_dropped_total") == 6
    assert [(line["event"], line["log_level"]) for line in logs] == [("prediction_records_dropped", "error")] * 2
    assert [line["count"] for line in logs] == [1, 5]
