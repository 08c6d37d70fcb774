"""Globs: `*` stands for any run of characters, `?` for one, everything else for itself."""

from collections import defaultdict

__all__ = ["Glob"]


class Glob:
    """A pattern whose match takes one step a character of the name, whatever the pattern.

    A nondeterministic automaton, simulated with one bit a state (Baeza-Yates and Gonnet, 1992): bit i says that the
    first i characters of the pattern, stars left out, may have been matched. A regular expression would try all ways
    to divide a name between stars.
    """

    __slots__ = ("_accepting", "_any", "_by_character", "_staying")

    def __init__(self, pattern: str) -> None:
        self._staying = 0
        self._any = 0
        by_character: defaultdict[str, int] = defaultdict(int)
        state = 1
        for character in pattern:
            if character == "*":
                self._staying |= state
                continue
            if character == "?":
                self._any |= state
            else:
                by_character[character] |= state
            state <<= 1
        self._by_character = dict(by_character)
        self._accepting = state

    def covers(self, name: str) -> bool:
        """Whether the whole of `name` matches."""
        states, any_character, staying = 1, self._any, self._staying
        by_character = self._by_character
        for character in name:
            moving = states & (by_character.get(character, 0) | any_character)
            states = moving << 1 | states & staying
            if not states:
                return False
        return bool(states & self._accepting)
