"""What processes do, as the system tells it."""

import time

import psutil

__all__ = ["computes"]


def computes(process: psutil.Process) -> bool:
    """Whether it takes a tenth of a processor or more, which one that waits does not. Blocks for 0.3 s."""
    before = sum(process.cpu_times()[:2])
    time.sleep(0.3)
    return sum(process.cpu_times()[:2]) - before >= 0.03
