"""The entry of the `inferplane` command; what a command needs is imported when that command is called."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

from inferplane.cli.command import READY_FILE_HELP, JsonOption
from inferplane.cli.exit_codes import ExitCode, epilog
from inferplane.cli.invocation import Invocation
from inferplane.cli.lazy import client_command, server_command

_SESSION, _MODELS, _SERVING, _SERVER = "Session and access", "Models", "Serving and reporting", "Server"

_CLIENT_COMMANDS = (
    ("login", "Open a session and remember the mesh.", _SESSION, "auth"),
    ("logout", "End the session.", _SESSION, "auth"),
    ("whoami", "Tell who you are and which roles you hold.", _SESSION, "auth"),
    ("token", "Print an access token, refreshed if need be.", _SESSION, "auth"),
    ("user", "Create and list users.", _SESSION, "user"),
    ("grant", "Give, take back and list roles.", _SESSION, "grant"),
    ("model", "Push, download and list models.", _MODELS, "model"),
    ("deploy", "Serve a version of a model.", _SERVING, "deploy"),
    ("undeploy", "Stop serving a deployment.", _SERVING, "deploy"),
    ("deployments", "List what is served.", _SERVING, "deploy"),
    ("deployment", "List and show deployments.", _SERVING, "deployment"),
    ("predict", "Ask a deployment for a prediction.", _SERVING, "predict"),
    ("feedback", "Tell the right answers of predictions.", _SERVING, "feedback"),
    ("report", "Report usage, latency and accuracy.", _SERVING, "report"),
)
_SERVER_COMMANDS = (
    ("up", "Start a whole mesh on this machine."),
    ("serve", "Run one service."),
    ("db", "Migrate and check the database."),
    ("doctor", "Show the effective settings and check what they lead to."),
)


class _Root(TyperGroup):
    """The commands by name, none of them imported yet."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, text, panel, module in _CLIENT_COMMANDS:
            self.add_command(client_command(name, text, panel, f"inferplane.cli.{module}"))
        for name, text in _SERVER_COMMANDS:
            self.add_command(server_command(name, text, _SERVER))


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"inferplane {version('inferplane')}")
        raise typer.Exit


def _root(
    context: typer.Context,
    as_json: JsonOption = False,
    ready_file: Annotated[
        Path | None,
        typer.Option("--ready-file", metavar="FILE", envvar="INFERPLANE_READY_FILE", help=READY_FILE_HELP),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Talk to an Inferplane mesh: sessions, models, deployments, predictions, reports.

    The mesh is that of --ready-file or INFERPLANE_READY_FILE, else the one you logged in to last.
    """
    invocation = context.ensure_object(Invocation)
    invocation.as_json, invocation.ready_file = as_json, ready_file


def run(arguments: Sequence[str]) -> int:
    """Run the command; gives the exit code, after saying on stderr what went wrong."""
    app = typer.Typer(cls=_Root, no_args_is_help=True, epilog=epilog())
    app.callback()(_root)
    invocation = Invocation()
    try:
        # What comes back is the status of a command that left by `typer.Exit`, or None.
        status: int | None = typer.main.get_command(app).main(
            list(arguments), prog_name="inferplane", standalone_mode=False, obj=invocation
        )
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the outermost handler
        from inferplane.cli.failures import report

        return report(error, as_json=invocation.as_json or _asked_for_json(error, arguments))
    return ExitCode.OK if status is None else status


def _asked_for_json(error: BaseException, arguments: Sequence[str]) -> bool:
    # Options that could not be parsed have not been seen; for `predict`, --json names the input.
    return isinstance(error, typer.TyperException) and "--json" in arguments and "predict" not in arguments


def main() -> None:
    """Run the command with the process's arguments and exit."""
    sys.exit(run(sys.argv[1:]))
