"""The memory of this process: how much it has, and giving back what is free."""

import ctypes
import os

__all__ = ["GivingBack", "give_back_free_memory", "resident_memory"]


def resident_memory(statm: int) -> int:
    """Bytes of this process in memory, by a descriptor of /proc/self/statm (proc_pid_statm(5))."""
    return int(os.pread(statm, 200, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


def give_back_free_memory() -> None:
    """Let the process be as large as what it holds (malloc_trim(3)), or what was freed would be taken for held.

    Blocks, for up to a tenth of a second. Where the C library has no such function, more is ended than need be.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class GivingBack:
    """When to give back, and since when that has been done. Moments are seconds on the monotonic clock."""

    def __init__(self) -> None:
        self._wanted: list[float] = []
        self._begun = float("-inf")
        self._running = False
        self.done_since = float("-inf")
        """What was free then has been given back."""

    def ask(self, moment: float) -> None:
        """What is free at that moment is to be given back."""
        self._wanted.append(moment)

    def is_due(self, now: float) -> bool:
        """Whether it is to begin now."""
        if self._running or min(self._wanted, default=now + 1) > now:
            return False
        self._wanted = [moment for moment in self._wanted if moment > now]
        self._running, self._begun = True, now
        return True

    def done(self) -> None:
        """It is through."""
        self._running, self.done_since = False, self._begun
