"""What a worker process tells of itself."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from inferplane.server.standard_error import StandardError

__all__ = ["ProcessMetrics"]


class ProcessMetrics(Collector):
    """How often the supervisor had to start this worker again, and how many log lines could not be written."""

    def __init__(self, restarts: int, output: StandardError) -> None:
        self._restarts = restarts
        self._output = output

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Called at each scrape."""
        yield CounterMetricFamily("inferplane_worker_restarts", "Starts after the first.", self._restarts)
        yield CounterMetricFamily("inferplane_log_lines_lost", "Lines that could not be written.", self._output.lost)
