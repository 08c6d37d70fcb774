"""Sessions, users and grants on the command line."""

import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from inferplane.client import FileStore
from inferplane.client.endpoints import Endpoints
from tests.support.cli import Cli
from tests.support.fake_serving import FakeMesh


async def test_login_remembers_mesh_and_session(logged_in: Cli, home: Path) -> None:
    result = await logged_in("whoami")
    assert (result.code, result.out) == (0, "alice\n  caller on digits*\n")
    assert stat.S_IMODE((home / "credentials.json").stat().st_mode) == 0o600


async def test_login_reads_the_password_from_a_file(cli: Cli, ready_file: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("correct horse battery\n")
    result = await cli("--ready-file", ready_file, "login", "-u", "alice", "--password-file", tmp_path / "password")
    assert result.code == 0


async def test_a_wrong_password_is_not_authenticated(cli: Cli, ready_file: Path) -> None:
    result = await cli("login", "-u", "alice", "--password-file", "-", "--ready-file", ready_file, stdin="wrong")
    assert result.code == 4
    assert "check the username and the password" in result.err
    assert "wrong" not in result.err


async def test_no_password_is_asked_for_where_nobody_can_answer(cli: Cli, ready_file: Path) -> None:
    result = await cli("login", "-u", "alice", "--ready-file", ready_file)
    assert result.code == 2
    assert "standard input" in result.err


async def test_without_a_mesh_the_command_says_how_to_name_one(cli: Cli) -> None:
    result = await cli("whoami")
    assert result.code == 4
    assert "inferplane login --ready-file" in result.err


async def test_without_a_session_the_command_says_to_log_in(cli: Cli, ready_file: Path) -> None:
    result = await cli("whoami", "--ready-file", ready_file)
    assert result.code == 4
    assert "run `inferplane login`" in result.err


async def test_logout_ends_and_forgets_the_session(mesh: FakeMesh, logged_in: Cli) -> None:
    assert (await logged_in("logout")).code == 0
    assert mesh.auth.logouts == 1
    assert (await logged_in("whoami")).code == 4


async def test_token_prints_a_token_that_is_good(mesh: FakeMesh, logged_in: Cli) -> None:
    result = await logged_in("token")
    assert mesh.fakes.tokens[result.out.strip()] == "alice"


async def test_token_refreshes_one_that_is_about_to_expire(mesh: FakeMesh, logged_in: Cli) -> None:
    now, store = datetime.now(UTC), FileStore(mesh.endpoints)
    tokens = await store.load()
    assert tokens is not None
    await store.save(replace(tokens, access_expires=now, received=now - timedelta(minutes=10)))
    result = await logged_in("token", "--json")
    assert (result.document["access_token"], mesh.auth.refreshes) == ("access-1", 1)


async def test_credentials_that_others_can_read_are_refused(logged_in: Cli, home: Path) -> None:
    (home / "credentials.json").chmod(0o644)
    result = await logged_in("whoami")
    assert result.code == 7
    assert "chmod 600" in result.err


async def test_a_user_is_created_with_a_password_from_stdin(mesh: FakeMesh, logged_in: Cli) -> None:
    result = await logged_in("user", "create", "bob", "--password-file", "-", "--json", stdin="a long password\n")
    assert result.document["user"] == "bob"
    assert mesh.auth.passwords["bob"] == "a long password"
    assert [user["user"] for user in (await logged_in("user", "list", "--json")).document] == ["alice", "bob"]


async def test_a_grant_is_added_listed_and_removed(mesh: FakeMesh, logged_in: Cli) -> None:
    await logged_in("grant", "add", "caller", "--to", "alice", "--on", "digits*")
    await logged_in("grant", "add", "viewer", "--to", "alice", "--on", "*")
    listed = (await logged_in("grant", "list", "--of", "alice", "--json")).document
    assert [(grant["role"], grant["on"]) for grant in listed] == [("caller", "digits*"), ("viewer", "*")]
    assert (await logged_in("grant", "remove", "caller", "--to", "alice", "--on", "digits*")).code == 0
    assert (await logged_in("grant", "remove", listed[1]["id"])).code == 0
    assert mesh.auth.grants == []


async def test_a_grant_that_is_not_there_is_not_found(logged_in: Cli) -> None:
    result = await logged_in("grant", "remove", "caller", "--to", "alice", "--on", "digits*", "--json")
    assert (result.code, result.error["reason"]) == (6, "GRANT_NOT_FOUND")


async def test_names_are_checked_before_anything_is_sent(mesh: FakeMesh, logged_in: Cli) -> None:
    mesh.fakes.calls.clear()
    result = await logged_in("grant", "add", "owner", "--to", "alice", "--on", "*")
    assert (result.code, mesh.fakes.calls) == (3, [])
    assert "publisher" in result.err


async def test_login_goes_to_the_mesh_that_is_named(cli: Cli) -> None:
    """Nobody listens there."""
    arguments = ("login", "--username", "alice", "--password-file", "-", "--mesh", "127.0.0.1:1")
    result = await cli(*arguments, stdin="secret\n")
    assert result.code == 8


def test_ports_follow_the_first_in_the_order_of_the_services() -> None:
    endpoints = Endpoints.on("mesh.example", 6000)
    assert (endpoints.auth, endpoints.inference) == ("mesh.example:6000", "mesh.example:6001")
    assert (endpoints.artifact, endpoints.reporting) == ("mesh.example:6002", "mesh.example:6003")
