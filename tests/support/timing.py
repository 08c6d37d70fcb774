"""How much processor time a piece of work takes, by itself."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def processor_time() -> Iterator[Callable[[], float]]:
    """Gives the seconds that this thread has worked since. Without the collector, which would look through all that
    the other tests have left."""
    gc.disable()
    began = time.thread_time()
    try:
        yield lambda: time.thread_time() - began
    finally:
        gc.enable()


def least_processor_time(work: Callable[[], object], tries: int = 5) -> float:
    """The least that some tries of the same took, in seconds: a virtual machine counts as a thread's own what its
    host takes away from it."""

    def one() -> float:
        with processor_time() as spent:
            work()
            return spent()

    return min(one() for _ in range(tries))
