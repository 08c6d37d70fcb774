"""Answers that are on their way to clients who may not read them: bounded in bytes."""

from collections import Counter

from inferplane.server.errors import InferplaneError

__all__ = ["UnreadAnswers"]

SMALL = 64 << 10
"""Answers of up to so many bytes are not counted; how many there can be is bounded by calls and streams."""
EACH = 128 << 20
ALL = 512 << 20


class UnreadAnswers:
    """Counts the bytes that are answered and not sent yet. A caller who does not read gets no more answers beyond
    EACH, and beyond ALL of everybody's only who has read all of its own does.

    gRPC cannot be made to drop an answer, so what is not read ends with its connection. Until then it is there twice:
    ours and gRPC's copy.
    """

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._total = 0

    @property
    def held(self) -> int:
        """The bytes of all that are counted."""
        return self._total

    def check(self, caller: str) -> None:
        """Raises OVERLOADED where no more answers of this caller may wait."""
        if self._total and (held := self._held[caller]) and (held >= EACH or self._total >= ALL):
            raise InferplaneError.overloaded("too many answers have not been read")

    def hold(self, caller: str, size: int) -> None:
        """Count an answer, until `release`; raises OVERLOADED where it is one too many. Many may have been asked for
        while none was there."""
        if size > SMALL:
            self.check(caller)
            self._held[caller] += size
            self._total += size

    def release(self, caller: str, size: int) -> None:
        """It was sent, or nobody is there any more."""
        if size > SMALL:
            self._held[caller] -= size
            self._total -= size
            if not self._held[caller]:
                del self._held[caller]
