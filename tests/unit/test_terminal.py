"""What commands of the server say on a terminal."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from inferplane.server.commands import doctor
from inferplane.server.commands.failures import fail
from inferplane.server.commands.terminal import say
from inferplane.server.commands.up import endpoint_table, what_next
from inferplane.server.settings import ServiceName

LIKE_MARKUP = ("/srv/[prod]/data", "[fd00::1]:50051", "a:key:b", "[/y]", r"\\[a] \[b]", "[red]x[/red]")


def test_a_text_is_not_broken_into_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    command = "inferplane login --username admin --password-file " + "folder/" * 20
    say(command)
    assert capsys.readouterr().err == f"{command}\n"


@pytest.mark.parametrize("text", LIKE_MARKUP)
def test_a_text_is_said_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    assert capsys.readouterr().err == f"{text}\n"


@pytest.mark.parametrize("text", LIKE_MARKUP)
def test_a_failure_is_said_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        fail(text)
    assert capsys.readouterr().err == f"error: {text}\n"


@pytest.mark.parametrize("text", LIKE_MARKUP)
def test_addresses_stand_in_the_table_of_endpoints_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    endpoints = {**dict.fromkeys([*ServiceName, "triton"], text), "metrics": {}}
    mesh: Any = SimpleNamespace(ready=lambda: {"endpoints": endpoints, "pids": {}}, postgres=None)
    say(endpoint_table(mesh, 1.0))
    assert capsys.readouterr().err.count(f" {text} ") == len(ServiceName) + 1


@pytest.mark.parametrize("text", LIKE_MARKUP)
def test_doctor_shows_settings_and_findings_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    doctor._print({"data_dir": text}, [("data directory", True, text)])
    assert capsys.readouterr().out.count(f" {text} ") == 2


def test_an_address_that_is_to_be_copied_is_quoted_for_the_shell() -> None:
    admin = {"username": "admin", "password_file": "/srv/[prod]/password"}
    ready = {"endpoints": {"auth": "[fd00::1]:50051"}, "admin": admin}
    mesh: Any = SimpleNamespace(ready=lambda: ready, log=None)
    assert "--mesh '[fd00::1]:50051' --username admin --password-file '/srv/[prod]/password'" in what_next(mesh)


def test_a_mesh_on_free_ports_is_named_by_its_ready_file() -> None:
    admin = {"username": "admin", "password_file": "/srv/password"}
    mesh: Any = SimpleNamespace(ready=lambda: {"endpoints": {"auth": "127.0.0.1:40000"}, "admin": admin}, log=None)
    said = what_next(mesh, Path("/srv/r y.json"))
    assert "inferplane login --ready-file '/srv/r y.json' --username admin" in said
    assert "--mesh" not in said
