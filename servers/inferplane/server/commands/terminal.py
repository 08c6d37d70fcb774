"""What the commands say to people, on standard error."""

import io
import sys
from typing import IO, cast

from rich.console import Console, RenderableType

from inferplane.server.standard_error import StandardError

__all__ = ["say"]


class _Terminal(io.TextIOBase):
    """Standard error as a file that rich can print to, which never fails and never waits for long."""

    def __init__(self) -> None:
        self._output = StandardError()

    def write(self, text: str) -> int:
        self._output.write(text)
        return len(text)

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()


def say(what: RenderableType, *, highlight: bool = True) -> None:
    """Print; where nobody can be told, such as on a closed or unread pipe, the command goes on all the same.

    Texts are not broken into lines: what they say to do is to be copied.
    """
    Console(file=cast("IO[str]", _Terminal())).print(what, highlight=highlight, soft_wrap=isinstance(what, str))
