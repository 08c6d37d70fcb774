"""Commands that are imported when they are called, so that the command itself starts fast."""

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Protocol

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from inferplane.cli.exit_codes import ExitCode

_ENTRY_POINTS = "inferplane.commands"


class Loaded(Protocol):
    """A command or a group of them, as typer makes them."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the arguments."""


class ServerMissing(typer.TyperException):
    """A command of the server, whose dependencies are not installed."""

    exit_code = ExitCode.CONFLICT

    def __init__(self, command: str, missing: ImportError) -> None:
        super().__init__(
            f"`inferplane {command}` needs the server: pip install 'inferplane[server,embedded]' ({missing})"
        )


class LazyCommand(TyperCommand):
    """Stands in the list of commands for one that `load` imports."""

    def __init__(self, name: str, help: str, panel: str, load: Callable[[], Loaded]) -> None:  # noqa: A002 - typer's word
        super().__init__(name, help=help, rich_help_panel=panel)
        self._load = load

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the command and go on with it."""
        return self._load().make_context(info_name, args, parent=parent, **extra)


def client_command(name: str, help: str, panel: str, module: str) -> LazyCommand:  # noqa: A002 - typer's word
    """Stand for the command `name` of a module's `app`, or for the whole app where it is a group of that name."""

    def load() -> Loaded:
        app: typer.Typer = importlib.import_module(module).app
        command = typer.main.get_command(app)
        inner = getattr(command, "commands", {}).get(name)
        loaded: Loaded = command if inner is None or command.name == name else inner
        return loaded

    return LazyCommand(name, help, panel, load)


def server_command(name: str, help: str, panel: str) -> LazyCommand:  # noqa: A002 - typer's word
    """Stand for a command that the server package offers by its entry point; raises ServerMissing."""

    def load() -> Loaded:
        try:
            return _as_command(name, _entry_point(name))
        except ImportError as error:
            raise ServerMissing(name, error) from error

    return LazyCommand(name, help, panel, load)


def _entry_point(name: str) -> Any:
    for entry in entry_points(group=_ENTRY_POINTS, name=name):
        return entry.load()
    raise ImportError(f"nothing offers the command {name}")


def _as_command(name: str, offered: Any) -> Loaded:
    if isinstance(offered, TyperCommand | TyperGroup):
        return offered
    if isinstance(offered, typer.Typer):
        return typer.main.get_command(offered)
    app = typer.Typer(add_completion=False)
    app.command(name)(offered)
    return typer.main.get_command(app)
