"""What the commands say to people."""

import io
import sys
from typing import IO, cast

from rich.console import Console, RenderableType
from rich.text import Text

from inferplane.server.standard_error import StandardError

__all__ = ["console", "say"]


class _Terminal(io.TextIOBase):
    """Standard error as a file that rich can print to, which never fails and never waits for long."""

    def __init__(self) -> None:
        self._output = StandardError()

    def write(self, text: str) -> int:
        self._output.write(text)
        return len(text)

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()


def console(file: IO[str] | None = None) -> Console:
    """Prints texts as they are, on standard output or into `file`: what looks like rich's markup is part of a path, an
    address or a name."""
    return Console(file=file, markup=False, emoji=False)


def say(what: RenderableType) -> None:
    """Print on standard error; where nobody can be told, such as on an unread pipe, the command goes on all the same.

    Texts are not broken into lines: what they say to do is to be copied.
    """
    console(cast("IO[str]", _Terminal())).print(what, soft_wrap=isinstance(what, str | Text))
