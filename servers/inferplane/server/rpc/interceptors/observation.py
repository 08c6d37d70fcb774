"""Counts, times and logs every call."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from inferplane.server.identity.principal import ANONYMOUS
from inferplane.server.log_pace import LogPace
from inferplane.server.rpc.call import Call
from inferplane.server.telemetry import DURATION_BUCKETS

__all__ = ["Observation"]

log = structlog.get_logger("access")

_QUIET = ("/grpc.health.v1.Health/", "/grpc.reflection.")
STRANGERS_LOGGED_A_SECOND = 50
"""Lines about calls whose caller is not known: they must not push all others out of the log."""


class Observation:
    """An interceptor with its metrics: `inferplane_rpc_calls_total`, `_duration_seconds` and `_in_progress`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("service", "method")
        self._calls = Counter("inferplane_rpc_calls", "Calls that ended.", (*labels, "code"), registry=registry)
        self._duration = Histogram(
            "inferplane_rpc_duration_seconds", "Time per call.", labels, buckets=DURATION_BUCKETS, registry=registry
        )
        self._pace = LogPace(STRANGERS_LOGGED_A_SECOND)
        self._in_progress = Gauge("inferplane_rpc_in_progress", "Calls running.", labels, registry=registry)

    @asynccontextmanager
    async def __call__(self, call: Call) -> AsyncIterator[None]:
        """Observe one call, whatever becomes of it."""
        labels = (call.method.service, call.method.name)
        with self._in_progress.labels(*labels).track_inprogress():
            try:
                yield
            finally:
                elapsed = time.monotonic() - call.started
                self._calls.labels(*labels, call.code.name).inc()
                self._duration.labels(*labels).observe(elapsed)
                if not call.method.path.startswith(_QUIET):
                    self._log(call, elapsed)

    def _log(self, call: Call, elapsed: float) -> None:
        stranger = call.principal is ANONYMOUS
        if stranger and not self._pace.passes():
            return
        log.info(
            "call",
            method=call.method.path,
            code=call.code.name,
            reason=call.reason or None,
            caller=call.principal.subject,
            on_behalf_of=call.principal.on_behalf_of or None,
            milliseconds=round(elapsed * 1000, 2),
            lines_suppressed=(self._pace.take_suppressed() or None) if stranger else None,
            address=call.peer if stranger else None,
        )
