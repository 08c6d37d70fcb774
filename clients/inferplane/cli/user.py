"""`user create`, `user list`."""

from pathlib import Path
from typing import Annotated

import typer

from inferplane.cli import records
from inferplane.cli.command import command
from inferplane.cli.invocation import Invocation
from inferplane.cli.secrets import read_password
from inferplane.client.names import short, user_id

app = typer.Typer(add_completion=False, name="user", help="Create and list users.", no_args_is_help=True)


@command(app, "create")
def create(
    invocation: Invocation,
    username: Annotated[str, typer.Argument(help="The new user's name.")],
    password_file: Annotated[
        Path | None,
        typer.Option("--password-file", metavar="FILE", help="Read the password from FILE, or from - for stdin."),
    ] = None,
) -> None:
    """Create a user who can log in, and may do nothing until given a role."""
    user_id(username)
    with invocation.plane() as plane:
        user = plane.auth.create_user(username, read_password(password_file, confirm=True))
    record = {"user": short(user.name), "create_time": records.time(user.create_time)}
    invocation.done(record, f"Created {username}. Give a role: inferplane grant add ROLE --to {username} --on GLOB")


@command(app, "list")
def list_users(invocation: Invocation) -> None:
    """List users by name."""
    with invocation.plane() as plane:
        users = [
            {"user": short(user.name), "create_time": records.time(user.create_time)}
            for user in plane.auth.list_users()
        ]
    invocation.table(users, {"user": "User", "create_time": "Created"})
