"""How large the next answer of a deployment will be, as far as those before it tell."""

from collections import OrderedDict
from typing import NamedTuple, TypeVar

__all__ = ["AnswerSizes"]

PAIRS = 4096
"""Callers and deployments of which sizes are kept; beyond them, those go that had no answer for longest."""
DEPLOYMENTS = 1024
SHRINK_EVERY = 1.0
"""Seconds. Small answers come by the thousand: if each made the expected size less, a few would hide what large ones
follow."""

KeyT = TypeVar("KeyT")


class _Largest(NamedTuple):
    """A size, and when it was seen or last became less, on the monotonic clock."""

    size: int
    at: float


class AnswerSizes:
    """Expects of a caller's next answer the size of the largest recent one that the deployment gave to this caller; of
    a caller without, of the largest to anybody; and `unknown` where there was none. Sizes are in bytes.

    By an eighth a second, while answers come, the largest is forgotten.
    """

    def __init__(self, unknown: int) -> None:
        self._unknown = unknown
        self._of_pairs: OrderedDict[tuple[str, str], _Largest] = OrderedDict()
        self._of_deployments: OrderedDict[str, _Largest] = OrderedDict()

    def expected(self, caller: str, deployment: str) -> int:
        """The size that the next answer is expected to have."""
        known = self._of_pairs.get((caller, deployment)) or self._of_deployments.get(deployment)
        return self._unknown if known is None else known.size

    def learn(self, caller: str, deployment: str, size: int, now: float) -> None:
        """An answer has come."""
        _learn(self._of_pairs, (caller, deployment), PAIRS, size, now)
        _learn(self._of_deployments, deployment, DEPLOYMENTS, size, now)


def _learn(known: OrderedDict[KeyT, _Largest], key: KeyT, most: int, size: int, now: float) -> None:
    before = known.get(key)
    if before is None:
        if len(known) >= most:
            known.popitem(last=False)
        known[key] = _Largest(size, now)
        return
    if size >= before.size:
        known[key] = _Largest(size, now)
    elif now - before.at >= SHRINK_EVERY:
        known[key] = _Largest(max(size, before.size * 7 // 8), now)
    known.move_to_end(key)
