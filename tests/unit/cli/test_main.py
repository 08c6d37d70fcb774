"""The command starts fast, lists everything, and does without the server."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import typer
import typer.main

from inferplane.cli import main
from inferplane.cli.exit_codes import ExitCode
from tests.support.cli import Cli

_HEAVY = ("grpc", "numpy", "google.protobuf", "inferplane.client", "inferplane.server")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_neither_import_nor_help_loads_what_commands_need(arguments: list[str]) -> None:
    program = f"from inferplane.cli.main import run; run({arguments!r})"
    code = f"import sys; {program}; print({set(_HEAVY)} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


async def test_help_lists_commands_and_exit_codes(cli: Cli) -> None:
    result = await cli("--help")
    words = set(result.out.split())
    assert result.code == 0
    assert {"login", "model", "predict", "report", "up", "serve", "db", "doctor"} <= words
    text = " ".join(result.out.split())
    assert all(f"{code.value} {code.meaning}" in text for code in ExitCode)


async def test_the_version_is_printed(cli: Cli) -> None:
    assert (await cli("--version")).out.startswith("inferplane ")


def _commands(module: str) -> list[tuple[str, list[str]]]:
    loaded = __import__(f"inferplane.cli.{module}", fromlist=["app"])
    command = typer.main.get_command(loaded.app)
    found = getattr(command, "commands", {command.name: command})
    return [(str(name), [option for item in found[name].params for option in item.opts]) for name in found]


@pytest.mark.parametrize("module", sorted({module for _, _, _, module in main._CLIENT_COMMANDS}))
def test_every_command_takes_json_and_a_ready_file(module: str) -> None:
    for name, options in _commands(module):
        assert {"--json", "--ready-file"} <= set(options), name


@pytest.mark.parametrize(("name", "module"), [(name, module) for name, _, _, module in main._CLIENT_COMMANDS])
async def test_every_command_has_help(cli: Cli, name: str, module: str) -> None:
    result = await cli(name, "--help")
    assert result.code == 0
    assert f"inferplane {name}" in result.out


class _Offer:
    def __init__(self, offered: object) -> None:
        self._offered = offered

    def load(self) -> object:
        if isinstance(self._offered, Exception):
            raise self._offered
        return self._offered


def _offer(monkeypatch: pytest.MonkeyPatch, offered: object) -> None:
    def entry_points(*, group: str, name: str) -> list[object]:
        assert (group, name) == ("inferplane.commands", "up")
        return [_Offer(offered)]

    monkeypatch.setattr("inferplane.cli.lazy.entry_points", entry_points)


async def test_a_command_of_the_server_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch, ModuleNotFoundError("No module named 'sqlalchemy'"))
    result = await cli("up")
    assert result.code == 7
    assert "needs the server: pip install 'inferplane[server,embedded]'" in result.err
    assert "sqlalchemy" in result.err


async def test_a_function_offered_by_the_server_is_a_command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def up(base_port: int = 0) -> None:
        print(f"port {base_port}")
        raise typer.Exit(5)

    _offer(monkeypatch, up)
    result = await cli("up", "--base-port", "7")
    assert (result.code, result.out) == (5, "port 7\n")


async def test_an_app_offered_by_the_server_is_a_group(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def one() -> None:
        print("one")

    @app.command()
    def two() -> None:
        print("two")

    _offer(monkeypatch, app)
    assert (await cli("up", "two")).out == "two\n"


def test_the_real_entry_points_name_the_four_commands() -> None:
    from importlib.metadata import entry_points

    offered: list[EntryPoint] = list(entry_points(group="inferplane.commands"))
    assert {name for name, _ in main._SERVER_COMMANDS} <= {entry.name for entry in offered}
