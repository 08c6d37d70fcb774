"""`deployment list`, `deployment show`."""

from typing import Annotated

import typer

from inferplane.cli import records
from inferplane.cli.command import command
from inferplane.cli.invocation import Invocation

app = typer.Typer(add_completion=False, name="deployment", help="List and show deployments.", no_args_is_help=True)

_COLUMNS = {
    "name": "Deployment",
    "model_version": "Serves",
    "digest": "Digest",
    "incoming": "Incoming",
    "incoming_message": "Incoming says",
    "state": "State",
    "state_message": "Message",
    "create_time": "Created",
    "creator": "By",
}


@command(app, "list")
def list_deployments(invocation: Invocation) -> None:
    """List the deployments that you may see, by name."""
    with invocation.plane() as plane:
        found = [records.deployment(deployment) for deployment in plane.inference.list_deployments()]
    invocation.table(found, _COLUMNS)


@command(app, "show")
def show(invocation: Invocation, name: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Which one.")]) -> None:
    """Show a deployment with what it takes and gives."""
    with invocation.plane() as plane:
        found = records.deployment(plane.inference.get(name))
    if invocation.as_json:
        invocation.document(found)
        return
    lines = [f"{heading}: {found[key]}" for key, heading in _COLUMNS.items() if found[key]]
    for side in ("inputs", "outputs"):
        lines += [f"{side.capitalize()[:-1]}: {records.describe(spec)}" for spec in found["signature"][side]]
    invocation.done(found, "\n".join(lines))
