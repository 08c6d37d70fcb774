"""`login`, `logout`, `whoami`, `token`."""

from pathlib import Path
from typing import Annotated

import typer

from inferplane.cli.command import command
from inferplane.cli.invocation import Invocation
from inferplane.cli.secrets import read_password, read_username
from inferplane.client.endpoints import save_profile
from inferplane.client.names import short

app = typer.Typer(add_completion=False)

_Password = Annotated[
    Path | None,
    typer.Option("--password-file", metavar="FILE", help="Read the password from FILE, or from - for stdin."),
]
_Mesh = Annotated[
    str | None,
    typer.Option(
        metavar="HOST[:PORT]",
        help="Where the mesh is; PORT is auth's, the others follow.  [default: the saved one, else 127.0.0.1:50051]",
    ),
]


@command(app, "login")
def login(
    invocation: Invocation,
    username: Annotated[str | None, typer.Option("--username", "-u", help="Who you are.")] = None,
    password_file: _Password = None,
    mesh: _Mesh = None,
) -> None:
    """Open a session, and remember the mesh for the commands to come."""
    with invocation.plane_to_log_in_to(mesh) as plane:
        user = read_username(username)
        tokens = plane.auth.login(user, read_password(password_file))
        endpoints = plane.asynchronous.endpoints
    save_profile(endpoints)
    record = {
        "user": user,
        "auth": endpoints.auth,
        "access_token_expire_time": tokens.access_expires.isoformat() if tokens.access_expires else None,
    }
    invocation.done(record, f"Logged in to {endpoints.auth} as {user}.")


@command(app, "logout")
def logout(invocation: Invocation) -> None:
    """End the session and forget its tokens."""
    with invocation.plane() as plane:
        plane.auth.logout()
    invocation.done({"logged_out": True}, "Logged out.")


@command(app, "whoami")
def whoami(invocation: Invocation) -> None:
    """Tell who you are and which roles you hold."""
    with invocation.plane() as plane:
        identity = plane.auth.whoami()
    roles = [{"role": held.role, "on": held.scope} for held in identity.roles]
    held_roles = "".join(f"\n  {held['role']} on {held['on']}" for held in roles) or "\n  no roles yet"
    record = {"user": short(identity.subject), "subject": identity.subject, "session": identity.session}
    invocation.done({**record, "roles": roles}, short(identity.subject) + held_roles)


@command(app, "token")
def token(invocation: Invocation) -> None:
    """Print an access token for other programs, refreshed if need be; it is a secret."""
    with invocation.plane() as plane:
        access_token = plane.auth.access_token()
    invocation.done({"access_token": access_token}, access_token)
