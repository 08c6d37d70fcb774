"""Keeps log lines that callers can cause, strangers among them, from filling the log."""

import time

__all__ = ["LogPace"]


class LogPace:
    """Lets a number of log lines a second pass and counts the others."""

    def __init__(self, a_second: int) -> None:
        self._a_second = a_second
        self._second = 0
        self._passed = 0
        self.suppressed = 0

    def passes(self) -> bool:
        """Whether one more line may be written now."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._passed = second, 0
        self._passed += 1
        if self._passed > self._a_second:
            self.suppressed += 1
            return False
        return True

    def take_suppressed(self) -> int:
        """How many lines were not written since the last one."""
        suppressed, self.suppressed = self.suppressed, 0
        return suppressed
