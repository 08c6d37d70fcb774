"""Passwords: from a file, from standard input or asked for without echo; never from the command line."""

import sys
from getpass import getpass
from pathlib import Path

import typer

from inferplane.client.names import invalid


def read_password(file: Path | None, *, confirm: bool = False) -> str:
    """Read a password; a final line break is not part of it. Raises OSError or InvalidArgument."""
    if file is None:
        return _ask(confirm)
    text = sys.stdin.read() if str(file) == "-" else file.read_text()
    password = text.removesuffix("\n").removesuffix("\r")
    if not password:
        raise invalid("password", "it is empty")
    return password


def _ask(confirm: bool) -> str:
    if not sys.stdin.isatty():
        raise typer.BadParameter("no terminal to ask for the password on; name a file, or - for standard input")
    password = getpass("Password: ", stream=sys.stderr)
    if confirm and getpass("Again: ", stream=sys.stderr) != password:
        raise invalid("password", "the two are not the same")
    if not password:
        raise invalid("password", "it is empty")
    return password


def read_username(username: str | None) -> str:
    """Take the username given, or ask for it."""
    if username:
        return username
    if not sys.stdin.isatty():
        raise typer.BadParameter("no terminal to ask for the username on; give --username")
    print("Username: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()
