"""Reporting's domain objects as messages."""

from collections.abc import Sequence

from inferplane.reporting.v1 import report_pb2
from inferplane.server.names import VERSION
from inferplane.server.reporting.metrics import VersionMetrics
from inferplane.server.reporting.quality import VersionQuality

__all__ = ["metrics_message", "quality_message"]


def metrics_message(metrics: VersionMetrics, quantiles: Sequence[float]) -> report_pb2.VersionMetrics:
    """One version's usage; `quantiles` are those that the latencies belong to."""
    message = report_pb2.VersionMetrics(
        model_version=VERSION.format(metrics.model, metrics.version),
        digest=metrics.digest,
        call_count=metrics.call_count,
        error_count=metrics.error_count,
    )
    if metrics.latencies_us:
        for quantile, latency_us in zip(quantiles, metrics.latencies_us, strict=True):
            message.latency_quantiles.add(quantile=quantile).latency.FromMicroseconds(latency_us)
    return message


def quality_message(quality: VersionQuality) -> report_pb2.VersionQuality:
    """One version's quality."""
    return report_pb2.VersionQuality(
        model_version=VERSION.format(quality.model, quality.version),
        digest=quality.digest,
        row_count=quality.row_count,
        labelled_count=quality.labelled_count,
        correct_count=quality.correct_count,
        accuracy=quality.accuracy,
    )
