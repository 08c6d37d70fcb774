"""Standard error as a place that may be full, closed, or a pipe that nobody reads."""

import json
import os
import select
import stat
import sys
import time
from threading import RLock

__all__ = ["StandardError"]

PATIENCE = 0.05
PIECE = select.PIPE_BUF
"""So much a pipe takes without waiting, once it says that it takes anything."""


class StandardError:
    """Writes without ever raising, and without waiting longer than PATIENCE seconds a second for whoever reads.

    What cannot be written is dropped and counted in `lost`. A reader that was once too slow is not waited for again
    until it has read; then one line says how many were lost. Safe in threads and in signal handlers.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.lost = 0
        self._said = 0
        self._descriptor = _descriptor() if descriptor is None else descriptor
        # Reentrant, because a signal handler may interrupt a write of its own thread.
        self._lock = RLock()
        self._stalled = False
        self._torn = False
        self._second = 0.0
        self._waited = 0.0
        self._poll = _poll(self._descriptor)

    def write(self, text: str) -> None:
        """Write `text`, whole where that is possible."""
        try:
            with self._lock:
                self._write(("\n" if self._torn else "") + text)
                if self.lost > self._said:
                    lost, self._said = self.lost - self._said, self.lost
                    self._write(json.dumps({"event": "log_lines_lost", "lines": lost, "level": "error"}) + "\n")
        except Exception:  # noqa: BLE001 - whatever is wrong with it, nobody's work depends on it
            self.lost += 1

    def _write(self, text: str) -> None:
        if self._descriptor is None:
            sys.stderr.write(text)
            return
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            if self._poll and not self._ready(self._poll):
                self._stalled = True
                raise TimeoutError
            written = os.write(self._descriptor, rest[:PIECE] if self._poll else rest)
            rest = rest[written:]
            self._torn = bool(rest)
        self._stalled = False

    def _ready(self, poll: "select.poll") -> bool:
        """Whether the reader takes something, asked for as long as there is patience left in this second."""
        began = time.monotonic()
        if began - self._second >= 1:
            self._second, self._waited = began, 0.0
        ready = bool(poll.poll(0 if self._stalled else max(0.0, PATIENCE - self._waited) * 1000))
        self._waited += time.monotonic() - began
        return ready


def _descriptor() -> int | None:
    """The one behind `sys.stderr`; None where that is no file. Number 2 may long be somebody else's socket."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def _poll(descriptor: int | None) -> "select.poll | None":
    """Asks whether a write would wait; None for files, which never say that it would."""
    try:
        if descriptor is None or stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
    except OSError:
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll
