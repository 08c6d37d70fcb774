"""Asks the store of chunks again and again whether it answers, so that health says so."""

import asyncio
from collections.abc import Callable

import structlog

from inferplane.server.artifact.chunk_store import ChunkStore
from inferplane.server.errors import InferplaneError

__all__ = ["READS", "WRITES", "StoreWatch"]

log = structlog.get_logger()

READS = "chunk store"
WRITES = "chunk store's writes"
INTERVAL = 5.0
TIMEOUT = 4.0
"""Seconds between two looks, and of one at most."""


class StoreWatch:
    """`report` is told of READS and WRITES whether they work."""

    def __init__(self, chunks: ChunkStore, report: Callable[[str, bool], None]) -> None:
        self._chunks = chunks
        self._report = report

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(INTERVAL)

    async def look(self) -> None:
        """Look once."""
        reads = await self._works(writes=False)
        self._report(READS, reads)
        self._report(WRITES, reads and await self._works(writes=True))

    async def _works(self, *, writes: bool) -> bool:
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._chunks.check(writes=writes)
        except InferplaneError:
            # The store has logged it.
            return False
        except TimeoutError:
            log.warning("chunk_store_slow", writes=writes, seconds=TIMEOUT)
            return False
        return True
