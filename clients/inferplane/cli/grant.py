"""`grant add`, `grant remove`, `grant list`."""

from typing import Annotated

import typer

from inferplane.cli import records
from inferplane.cli.command import command
from inferplane.cli.invocation import Invocation
from inferplane.client import names
from inferplane.client.errors import NotFound
from inferplane.client.sync import Inferplane

app = typer.Typer(add_completion=False, name="grant", help="Give, take back and list roles.", no_args_is_help=True)

_To = Annotated[str, typer.Option("--to", metavar="USER", help="Who holds the role.")]
_On = Annotated[str, typer.Option("--on", metavar="GLOB", help="Names of models and deployments, such as 'team-*'.")]


@command(app, "add")
def add(
    invocation: Invocation,
    role: Annotated[str, typer.Argument(help=f"One of {', '.join(names.ROLES)}.")],
    to: _To,
    on: _On,
) -> None:
    """Give a user a role on a glob of names; effective within a second."""
    with invocation.plane() as plane:
        grant = plane.auth.grant(role, to=to, on=on)
    invocation.done(records.grant(grant), f"{to} is {role} on {on} (grant {names.short(grant.name)}).")


@command(app, "remove")
def remove(
    invocation: Invocation,
    grant: Annotated[str, typer.Argument(metavar="GRANT|ROLE", help="A grant's id, or a role with --to and --on.")],
    to: Annotated[str | None, typer.Option("--to", metavar="USER", help="Who holds the role.")] = None,
    on: Annotated[str | None, typer.Option("--on", metavar="GLOB", help="The grant's glob, as it was given.")] = None,
) -> None:
    """Take a grant back; effective within a second."""
    if (to is None) != (on is None):
        raise typer.BadParameter("--to and --on go together, with a role")
    with invocation.plane() as plane:
        found = grant if to is None or on is None else _find(plane, grant, to, on)
        plane.auth.revoke(found)
    invocation.done({"id": names.short(found), "removed": True}, f"Removed the grant {names.short(found)}.")


@command(app, "list")
def list_grants(
    invocation: Invocation,
    of: Annotated[str | None, typer.Option("--of", metavar="USER", help="Only the grants of this user.")] = None,
) -> None:
    """List grants, oldest first."""
    with invocation.plane() as plane:
        grants = [records.grant(grant) for grant in plane.auth.list_grants(of=of)]
    columns = {"id": "Grant", "role": "Role", "to": "To", "on": "On", "create_time": "Created", "creator": "By"}
    invocation.table(grants, columns)


def _find(plane: Inferplane, role: str, to: str, on: str) -> str:
    names.role(role)
    for grant in plane.auth.list_grants(of=to):
        if grant.role == role and grant.scope == on:
            return grant.name
    raise NotFound(f"{to} has no grant of {role} on {on}", reason="GRANT_NOT_FOUND")
