"""The memory of this process: how much it has, and giving back what is free."""

import ctypes
import os

__all__ = ["GivingBack", "give_back_free_memory", "resident_memory"]

GIVE_BACK_AFTER = 3
"""Looks from the end of calls to the giving back of what they held."""


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
    """When it is time to give back: some looks after calls were ended, when what they held is free."""

    def __init__(self) -> None:
        self._looks = 0
        self._ended_since = False

    def soon(self) -> None:
        """Calls were ended."""
        self._ended_since = self._looks > 0
        self._looks = self._looks or GIVE_BACK_AFTER

    def is_due(self) -> bool:
        """Asked at each look."""
        if not self._looks:
            return False
        self._looks -= 1
        if self._looks:
            return False
        # What was ended since the one before may not be free yet.
        self._looks, self._ended_since = GIVE_BACK_AFTER if self._ended_since else 0, False
        return True
