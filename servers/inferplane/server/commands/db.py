"""`inferplane db`: the database's schema and its first administrator."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from inferplane.server.auth.first_admin import create_first_admin
from inferplane.server.commands.failures import fail, reported
from inferplane.server.commands.terminal import console
from inferplane.server.settings_sources import load_settings
from inferplane.server.storage.migrate import ServicesConnectedError
from inferplane.server.storage.migrate import migrate as run_migrations

__all__ = ["app"]

app = typer.Typer(help="Manage the database: its schema and the first administrator.", no_args_is_help=True)


@app.command()
def migrate() -> None:
    """Bring the database at INFERPLANE_DATABASE_URL to this release's version, as its owner.

    Safe to run at any time and from several machines at once: an advisory lock lets one go first. Where services of the
    release before could not go on, it changes nothing and names those that are to be stopped.
    """
    settings = load_settings()
    if settings.database_url is None:
        fail("INFERPLANE_DATABASE_URL is not set; `inferplane up` migrates its own database by itself")
    with reported(SQLAlchemyError, ServicesConnectedError):
        version = asyncio.run(run_migrations(make_url(settings.database_url.get_secret_value())))
    console().print(f"The database is at version {version}.")


@app.command("create-admin")
def create_admin(
    username: Annotated[str, typer.Option(help="Name of the administrator to create.")],
    password_file: Annotated[Path, typer.Option(help="File that holds the password (12 bytes or more).")],
) -> None:
    """Create the first administrator. Does nothing if there is an administrator already."""
    # As `inferplane login` reads it: else a file of two lines would make an administrator who cannot log in with it.
    password = password_file.read_text().removesuffix("\n").removesuffix("\r")
    with reported(SQLAlchemyError):
        created = asyncio.run(create_first_admin(load_settings(), username, password))
    console().print(f"Created the administrator {username}." if created else "There is an administrator already.")
