"""Structured logs: one JSON object a line, on standard error. Logging never fails and never waits for long."""

import json
import logging
from collections import defaultdict
from typing import Any

import structlog

from inferplane.server.log_pace import LogPace
from inferplane.server.standard_error import StandardError

__all__ = ["configure_logging"]

LINES_A_SECOND = 10
"""Of each library's logger: strangers can make some speak, such as gRPC by bytes in a header that are no text."""
LONGEST = 2000
"""Characters of what a library says; what strangers send it may be among them."""


def configure_logging(level: str, **bound: str) -> StandardError:
    """Log at `level` and above, with `bound` (such as the service's name) on every line; gives where the lines go.

    Libraries that use the standard library's `logging` are heard from level `warning` on, in the same form and paced.
    """
    output = StandardError()
    lowest = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        logger_factory=lambda *_: _Lines(output),
    )
    structlog.contextvars.bind_contextvars(**bound)
    logging.basicConfig(level=logging.WARNING, handlers=[_Bridge(lowest)], force=True)
    logging.captureWarnings(True)
    return output


class _Lines:
    """What structlog calls a logger: takes rendered lines."""

    def __init__(self, output: StandardError) -> None:
        self._output = output

    def msg(self, line: str) -> None:
        self._output.write(line + "\n")

    debug = info = warning = error = critical = msg


class _Bridge(logging.Handler):
    """Says in our form what the standard library's loggers are told from `level` on, at most so much of each. What is
    below does not come here, and so uses up nobody's pace."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._paces: defaultdict[str, LogPace] = defaultdict(lambda: LogPace(LINES_A_SECOND))

    def emit(self, record: logging.LogRecord) -> None:
        pace = self._paces[record.name]
        if not pace.passes():
            return
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit the message must not hide it
            text = str(record.msg)
        level = next(level for level in _LEVELS if record.levelno >= level)
        structlog.get_logger().log(
            level,
            text[:LONGEST],
            logger=record.name,
            exc_info=record.exc_info,
            lines_suppressed=pace.take_suppressed() or None,
        )


_LEVELS = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.NOTSET)


def _render(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
    try:
        line: str | bytes = structlog.processors.JSONRenderer()(
            logger, method, structlog.processors.format_exc_info(logger, method, event)
        )
    except Exception as error:  # noqa: BLE001 - a value that cannot be shown must not fail who logs it
        return json.dumps({"event": str(event.get("event")), "level": method, "unreadable": type(error).__name__})
    return line if isinstance(line, str) else line.decode()
