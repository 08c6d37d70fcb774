"""What commands of the server say on a terminal."""

import pytest

from inferplane.server.commands.terminal import say


def test_a_text_is_not_broken_into_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    command = "inferplane login --username admin --password-file " + "folder/" * 20
    say(command)
    assert capsys.readouterr().err == f"{command}\n"
