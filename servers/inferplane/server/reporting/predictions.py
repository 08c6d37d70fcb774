"""Prediction records: kept once, as they came."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

__all__ = ["MAX_RECORDS", "Prediction", "TimeSpan"]

MAX_RECORDS = 2000
"""Most records of one batch."""


class Prediction(NamedTuple):
    """One call of a deployment. `id` is the text of a UUID, `latency_us` is in microseconds, `status_code` a gRPC
    status, 0 for success; `predicted_labels` holds one class for each row, or none where the version names no label
    output."""

    id: str
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
