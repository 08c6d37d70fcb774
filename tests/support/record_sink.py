"""A sink of prediction records in memory, for tests of what comes before it."""

from inferplane.reporting.v1.prediction_pb2 import PredictionRecord
from inferplane.server.inference.records.delivery import RefusedError

__all__ = ["Sink"]


class Sink:
    """Keeps what it is given; fails the next `failures` times and refuses what holds a record named in `refuses`."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.calls: list[int] = []
        self.failures = 0
        self.refuses: set[str] = set()

    async def store(self, records: list[PredictionRecord]) -> None:
        self.calls.append(len(records))
        if self.failures:
            self.failures -= 1
            raise ConnectionError
        ids = [record.prediction_id for record in records]
        if self.refuses & set(ids):
            raise RefusedError
        self.stored += [known for known in ids if known not in self.stored]
