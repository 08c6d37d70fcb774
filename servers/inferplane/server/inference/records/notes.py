"""Notes: what a prediction leaves behind when its call ends, kept in memory until it is delivered."""

import asyncio
from collections import deque
from typing import NamedTuple

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from inferplane.server.access.snapshot import Target
from inferplane.server.inference.records.labels import LabelSource

__all__ = ["BATCH", "Note", "Notes"]

log = structlog.get_logger()

BATCH = 1000
MAX_NOTES = 100_000
MAX_HELD = 64 << 20
DROP_LOG_INTERVAL = 10.0


class Note(NamedTuple):
    """One prediction. Times are in nanoseconds, `status_code` is a gRPC status, 0 for success; `labels` is None where
    the version names no label output or did not answer."""

    prediction_id: str
    client_request_id: str
    caller: str
    deployment: str
    target: Target
    arrived_ns: int
    latency_ns: int
    status_code: int
    labels: LabelSource | None


class Notes:
    """Takes notes at next to no cost. Where more than 100,000 wait, or their labels hold more than 64 MiB, because they
    cannot be delivered for long, the oldest are dropped, counted in `inferplane_prediction_records_dropped_total` and
    logged."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._waiting: deque[Note] = deque()
        self._held = 0
        self.in_delivery = 0
        """Notes that were handed over as a batch and are not delivered yet."""
        self._full = asyncio.Event()
        self._unlogged = 0
        self._logged_at = float("-inf")
        self.dropped = Counter(
            "inferplane_prediction_records_dropped", "Records that could not be delivered.", registry=registry
        )
        waiting = Gauge("inferplane_prediction_records_waiting", "Records not delivered yet.", registry=registry)
        waiting.set_function(lambda: len(self._waiting) + self.in_delivery)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, note: Note) -> None:
        """Keep a note."""
        self._waiting.append(note)
        if note.labels is not None:
            self._held += note.labels.size
        if len(self._waiting) >= BATCH:
            self._full.set()
        while len(self._waiting) > MAX_NOTES or self._held > MAX_HELD:
            self._pop()
            self._count_dropped()

    def batch(self) -> list[Note]:
        """Hand over the oldest notes, at most BATCH."""
        batch = [self._pop() for _ in range(min(BATCH, len(self._waiting)))]
        self.in_delivery += len(batch)
        return batch

    async def until_due(self, interval: float) -> None:
        """Wait until a batch is full, at most `interval` seconds."""
        try:
            async with asyncio.timeout(interval):
                await self._full.wait()
        except TimeoutError:
            return
        finally:
            self._full.clear()

    def _pop(self) -> Note:
        note = self._waiting.popleft()
        if note.labels is not None:
            self._held -= note.labels.size
        return note

    def _count_dropped(self) -> None:
        self.dropped.inc()
        self._unlogged += 1
        now = asyncio.get_running_loop().time()
        if now - self._logged_at > DROP_LOG_INTERVAL:
            log.error("prediction_records_dropped", count=self._unlogged, waiting=len(self._waiting))
            self._logged_at, self._unlogged = now, 0
