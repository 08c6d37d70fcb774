"""Calls at Triton of which an answer shows that there are too many."""

import asyncio

from inferplane.server.inference.dataplane.answer_sizes import AnswerSizes

__all__ = ["Surplus"]

MOST = 256 << 20
"""Bytes of answers to one caller of one deployment that may be on their way when an answer is larger than expected."""
FEWEST = 8
"""Calls that go on however large their answers are: so many a caller has where nothing is known."""


class Surplus:
    """Knows which calls Triton has of each caller and deployment, and learns how large their answers are. Where one is
    larger than was expected of it, those beside it entered too cheaply, too: the newest beyond MOST are ended.

    Whoever gets small answers could otherwise have as many large ones on their way at any time.
    """

    def __init__(self, sizes: AnswerSizes) -> None:
        self._sizes = sizes
        self._calls: dict[tuple[str, str], dict[asyncio.Timeout, None]] = {}

    def add(self, caller: str, deployment: str, limit: asyncio.Timeout) -> None:
        """Triton is asked now; the call ends where `limit` expires."""
        self._calls.setdefault((caller, deployment), {})[limit] = None

    def discard(self, caller: str, deployment: str, limit: asyncio.Timeout) -> None:
        """The call has ended."""
        calls = self._calls[caller, deployment]
        del calls[limit]
        if not calls:
            del self._calls[caller, deployment]

    def learn(self, caller: str, deployment: str, size: int, now: float) -> None:
        """An answer has come, of a call that has been discarded."""
        calls = self._calls.get((caller, deployment), ())
        most = max(FEWEST, MOST // max(size, 1))
        if len(calls) > most and size > self._sizes.expected(caller, deployment):
            at_once = asyncio.get_running_loop().time()
            for limit in list(calls)[most:]:
                if not limit.expired():
                    limit.reschedule(at_once)
        self._sizes.learn(caller, deployment, size, now)
