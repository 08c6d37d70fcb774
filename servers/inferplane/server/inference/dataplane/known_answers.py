"""What the answers of a version were like so far, and so what the next may be: an answer's size shows only when it is
read, and a small request can have a large one."""

import time
from dataclasses import dataclass

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.snapshot import Route
from inferplane.server.errors import InferplaneError

__all__ = ["LARGE", "AllKnownAnswers", "KnownAnswers"]

LARGE = 256 << 10
"""Bytes of an answer; those above are read in turn."""
ENOUGH = 100
"""Answers of a version, none of them large, after which the next are taken to be small, too."""
MOST_DEPLOYMENTS = MOST_CALLERS = 4096
"""About which something is known; of more, all are learned anew."""
REMEMBERED = 600.0
"""Seconds, and up to twice as many, for which as much may come again as came once."""
UNKNOWN = 16 << 20
"""Bytes that an answer may have to a caller of whom nothing is known, where the version has had none, or large ones."""
LITTLE = 4 << 20
"""Bytes of answers of which many may be in Triton at once."""
UNIT = 32 << 20
"""Bytes of an answer that is refused for its size; larger ones count for more, smaller ones for as much."""
PAUSE = 60.0
"""Seconds in which a caller may have one more of them. Triton up to 2.56 keeps the memory of each."""
AT_FIRST = 10
"""So many of them he may have before that."""


@dataclass(slots=True)
class _Had:
    """What one caller has had; in bytes, and moments on the monotonic clock."""

    expected: int = 0
    """What his next answer is likely to have, if it is large."""
    most: int = 0
    """The largest since `since`."""
    most_before: int = 0
    """The largest in REMEMBERED before that."""
    since: float = 0.0
    forgiven_at: float = float("-inf")
    """When none of those that were refused counts any more."""

    def largest(self, now: float) -> int:
        """Of the last REMEMBERED at least."""
        if periods := int((now - self.since) // REMEMBERED):
            self.most_before = self.most if periods == 1 else 0
            self.most = 0
            self.since += periods * REMEMBERED
        return max(self.most, self.most_before)


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
        """Whether enough have come, and none of them was large."""
        return self._count >= ENOUGH and self._were_small

    def knows(self, caller: str) -> bool:
        """Whether he has had one."""
        return caller in self._had

    def expected(self, caller: str) -> int:
        """How large his next one is likely to be, in bytes, where the last were large; else 0."""
        had = self._had.get(caller)
        return had.expected if had is not None else 0

    def may_be(self, caller: str) -> int:
        """How large his next one may be, in bytes; 0 where by all that is known it is little."""
        had = self._had.get(caller)
        if had is None:
            return 0 if self._count and self._were_small else UNKNOWN
        largest = had.largest(time.monotonic())
        return largest if largest > LITTLE else 0

    def came(self, caller: str, size: int) -> None:
        """One did, of so many bytes."""
        self._count += 1
        if size > LARGE:
            self._were_small = False
        elif self._were_small and self._count > ENOUGH:
            return
        had = self._of(caller)
        had.expected = max(size, had.expected // 4)
        if had.expected <= LARGE:
            had.expected = 0
        had.largest(time.monotonic())
        had.most = max(had.most, size)

    def was_refused(self, caller: str, size: int) -> None:
        """One came of so many bytes, more than are taken: the next that is taken is no larger than usual."""
        self.came(caller, min(size, UNIT))
        had, now = self._of(caller), time.monotonic()
        weight = min(max(1.0, size / UNIT), AT_FIRST / 2)
        had.forgiven_at = min(max(had.forgiven_at, now), now + PAUSE * (AT_FIRST - 1)) + PAUSE * weight

    def check(self, caller: str) -> None:
        """Raises MESSAGE_TOO_LARGE where he has had too many that were refused for their size."""
        had = self._had.get(caller)
        if had is None:
            return
        pause = had.forgiven_at - time.monotonic() - PAUSE * (AT_FIRST - 1)
        if pause > 0:
            detail = (
                f"so were answers of this deployment to you, again and again: it takes your next call, of any size, in "
                f"{pause:.0f} s; ask for less then"
            )
            raise InferplaneError(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, retry_after=pause, detail=detail)

    def _of(self, caller: str) -> _Had:
        had = self._had.get(caller)
        if had is None:
            if len(self._had) >= MOST_CALLERS:
                self._had.clear()
            had = self._had[caller] = _Had(since=time.monotonic())
        return had


class AllKnownAnswers:
    """What is known, by deployment."""

    def __init__(self) -> None:
        self._known: dict[str, KnownAnswers] = {}

    def of(self, route: Route) -> KnownAnswers:
        """Of the version that a route leads to: of another that was there before, all is forgotten."""
        known = self._known.get(route.deployment)
        if known is None or known.digest != route.target.digest:
            if len(self._known) >= MOST_DEPLOYMENTS:
                self._known.clear()
            known = self._known[route.deployment] = KnownAnswers(route.target.digest)
        return known
