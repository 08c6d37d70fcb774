"""Waiting no longer than a call may take."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError

__all__ = ["in_time"]

T = TypeVar("T")


async def in_time(work: Awaitable[T], deadline: float) -> T:
    """What the work gives, by `deadline`, one of `time.monotonic`. Raises DEADLINE_EXCEEDED, and ends the work, where
    it takes longer."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await work
    except TimeoutError:
        raise InferplaneError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED) from None
