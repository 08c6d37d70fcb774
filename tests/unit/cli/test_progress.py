"""The progress bar."""

import io
import sys

import pytest

from inferplane.cli.invocation import Invocation
from inferplane.cli.progress import transfer


class Watched(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["[prod]", "[/y]", "a:key:b"])
def test_a_name_stands_beside_the_bar_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Watched()
    monkeypatch.setattr(sys, "stderr", terminal)
    with transfer(Invocation(), f"push {name}") as report:
        assert report is not None
        report(1, 2)
    assert f"push {name}" in terminal.getvalue()
