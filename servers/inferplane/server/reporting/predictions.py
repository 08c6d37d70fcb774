"""Prediction records: kept once, as they came."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

__all__ = ["MAX_LABELS", "MAX_LABEL_LENGTH", "MAX_RECORDS", "Prediction", "PredictionStore", "TimeSpan", "ingest"]

MAX_RECORDS = 2000
"""Most records of one batch."""
MAX_LABELS = 10_000
"""Most rows of one prediction."""
MAX_LABEL_LENGTH = 256
"""Most characters of one label."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One call of a deployment. `latency_us` is in microseconds, `status_code` a gRPC status, 0 for success;
    `predicted_labels` holds one class for each row, or none where the version names no label output."""

    id: UUID
    client_request_id: str
    caller: str
    deployment: str
    model: str
    version: int
    digest: str
    requested_at: datetime
    latency_us: int
    status_code: int
    predicted_labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TimeSpan:
    """From `start`, before `end`, to the microsecond; None leaves that side open."""

    start: datetime | None
    end: datetime | None


class PredictionStore(Protocol):
    """What `ingest` needs of a transaction."""

    async def add(self, predictions: Sequence[Prediction]) -> int: ...


async def ingest(store: PredictionStore, predictions: Sequence[Prediction]) -> int:
    """Add the records that are not there yet; how many those were."""
    # In one order for all: two batches that share records and met in opposite orders would wait for each other.
    return await store.add(sorted(predictions, key=lambda prediction: prediction.id))
