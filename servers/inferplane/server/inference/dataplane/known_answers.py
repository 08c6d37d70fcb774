"""What the answers of a version were like so far, and so what the next may be: an answer's size shows only when it is
read, and a small request can have a large one."""

import time
from dataclasses import dataclass

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError

__all__ = ["SMALL", "KnownAnswers"]

SMALL = 256 << 10
"""Bytes of an answer that is taken as it comes."""
ENOUGH = 100
"""Answers of a version, none of them larger than SMALL, after which the next are taken to be small, too."""
MOST_KNOWN = 4096
"""Callers about whom something is known; of more, all are learned anew."""
REMEMBERED = 600.0
"""Seconds for which as much may come again as came once."""
UNKNOWN = 32 << 20
"""Bytes that an answer may have to a caller who has had none of the version."""
LEAST = 4 << 20
"""Bytes that an answer may have, whatever came before, where not all of the version's were small."""
PAUSE = 60.0
"""Seconds in which a caller may have one more answer that is refused for its size: Triton up to 2.56 keeps the memory
of each."""
AT_FIRST = 10
"""So many of them he may have before that."""


@dataclass(slots=True)
class _Had:
    """What one caller has had."""

    expected: int = 0
    most: int = 0
    most_at: float = float("-inf")
    forgiven_at: float = float("-inf")
    """When none of those that were refused counts any more."""


class KnownAnswers:
    """What is known of the answers of a deployment's version, in this process."""

    __slots__ = ("_count", "_had", "_were_small", "digest")

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self._count = 0
        self._were_small = True
        self._had: dict[str, _Had] = {}

    @property
    def are_small(self) -> bool:
        return self._count >= ENOUGH and self._were_small

    def expected(self, caller: str) -> int:
        """How large his next one is likely to be, in bytes, where the last were large; else 0."""
        had = self._had.get(caller)
        return had.expected if had is not None else 0

    def may_be(self, caller: str) -> int:
        """How large his next one may be, in bytes, if he makes it so; 0 where all are small."""
        if self.are_small:
            return 0
        had = self._had.get(caller)
        return UNKNOWN if had is None else max(LEAST, had.most)

    def came(self, caller: str, size: int) -> None:
        """One did, of so many bytes."""
        self._count += 1
        if size > SMALL:
            self._were_small = False
        elif self._were_small and self._count > ENOUGH:
            return
        had, now = self._of(caller), time.monotonic()
        had.expected = max(size, had.expected // 4)
        if had.expected <= SMALL:
            had.expected = 0
        if size >= had.most or now - had.most_at > REMEMBERED:
            had.most, had.most_at = size, now

    def was_refused(self, caller: str, size: int) -> None:
        """One of so many bytes, more than are taken."""
        self.came(caller, size)
        had = self._of(caller)
        had.forgiven_at = max(had.forgiven_at, time.monotonic()) + PAUSE

    def check(self, caller: str) -> None:
        """Raises MESSAGE_TOO_LARGE where he has had too many that were refused for their size."""
        had = self._had.get(caller)
        if had is None:
            return
        pause = had.forgiven_at - time.monotonic() - PAUSE * (AT_FIRST - 1)
        if pause > 0:
            raise InferplaneError(
                ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE,
                retry_after=pause,
                detail=f"so were {AT_FIRST} answers to you: ask for less at once; it is asked again in {pause:.0f} s",
            )

    def _of(self, caller: str) -> _Had:
        had = self._had.get(caller)
        if had is None:
            if len(self._had) >= MOST_KNOWN:
                self._had.clear()
            had = self._had[caller] = _Had()
        return had
