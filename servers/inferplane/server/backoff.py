"""How long to wait before something that failed is tried again."""

import time

__all__ = ["Backoff"]


class Backoff:
    """Pauses, in seconds, that double from `first` to `most`; what lasted for `steady` seconds begins anew."""

    def __init__(self, first: float, most: float, *, steady: float = 10.0) -> None:
        self._first = first
        self._most = most
        self._steady = steady
        self._next = first
        self._began = time.monotonic()

    def begin(self) -> None:
        """Say that a try begins now."""
        self._began = time.monotonic()

    def pause(self, *, ran: bool = True) -> float:
        """How long to wait, now that the try has ended, or has failed without that it ever `ran`."""
        if ran and time.monotonic() - self._began > self._steady:
            self._next = self._first
        pause, self._next = self._next, min(self._next * 2, self._most)
        return pause
