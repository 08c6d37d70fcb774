"""Usage of a model's versions: calls, errors, latency."""

from collections.abc import Sequence
from dataclasses import dataclass

from inferplane.server.errors import invalid_field

__all__ = ["DEFAULT_QUANTILES", "MAX_QUANTILES", "VersionMetrics", "wanted_quantiles"]

DEFAULT_QUANTILES = (0.5, 0.9, 0.99)
MAX_QUANTILES = 16


@dataclass(frozen=True, slots=True)
class VersionMetrics:
    """Calls of one version. `latencies_us` are the quantiles asked for, in microseconds and in that order, over the
    calls that succeeded; empty if none did.

    The quantile q of n latencies is the smallest of them that at least q·n do not exceed, so it is one that was
    measured: PostgreSQL's `percentile_disc`, and definition 1 of Hyndman and Fan (1996), numpy's `inverted_cdf`.
    """

    model: str
    version: int
    digest: str
    call_count: int
    error_count: int
    latencies_us: tuple[int, ...]


def wanted_quantiles(quantiles: Sequence[float]) -> tuple[float, ...]:
    """The quantiles to compute: those asked for or the usual ones. Raises INVALID_FIELD."""
    if len(quantiles) > MAX_QUANTILES:
        raise invalid_field("quantiles", f"must be at most {MAX_QUANTILES}")
    for position, quantile in enumerate(quantiles):
        if not 0 < quantile < 1:
            raise invalid_field(f"quantiles[{position}]", "must be greater than 0 and less than 1")
    return tuple(quantiles) or DEFAULT_QUANTILES
