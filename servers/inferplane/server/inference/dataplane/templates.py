"""Remembers what was found of a message, for the next ones that differ in their tensors' contents alone.

Programs send the same head again and again: name, shapes and types. To compare it costs a tenth of parsing and
checking it.
"""

from typing import Generic, NamedTuple, TypeVar

__all__ = ["Templates"]

FoundT = TypeVar("FoundT")

LONGEST = 1 << 10
MAX_OF_A_LENGTH = 16
"""They are compared one after the other."""


class _Template(NamedTuple, Generic[FoundT]):
    """A message's bytes but for its contents: those before the first, and the others by their positions."""

    head: bytes
    others: tuple[tuple[int, bytes], ...]
    found: FoundT


class Templates(Generic[FoundT]):
    """At most `most` templates of at most 1 KiB each; when they are full they are forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._by_length: dict[int, list[_Template[FoundT]]] = {}

    def find(self, data: bytes) -> FoundT | None:
        """What was remembered of a message that is equal to this one outside of its contents."""
        for head, others, found in self._by_length.get(len(data), ()):
            if data.startswith(head) and (not others or all(data.startswith(piece, at) for at, piece in others)):
                return found
        return None

    def remember(self, data: bytes, contents: list[tuple[int, int]], found: FoundT) -> None:
        """Remember what was found of `data`, whose contents are at these positions, in order."""
        if not contents or len(data) - sum(end - start for start, end in contents) > LONGEST:
            return
        if self._count >= self._most:
            self._by_length.clear()
            self._count = 0
        ends = [end for _, end in contents]
        starts = [*(start for start, _ in contents[1:]), len(data)]
        others = tuple((end, data[end:start]) for end, start in zip(ends, starts, strict=True) if end < start)
        made = _Template(data[: contents[0][0]], others, found)
        present = self._by_length.get(len(data), [])
        # What was found before of the same head is of an older policy.
        kept = [template for template in present if template[:2] != made[:2]][-(MAX_OF_A_LENGTH - 1) :]
        self._by_length[len(data)] = [*kept, made]
        self._count += len(kept) + 1 - len(present)
