"""The server's own commands: `db`, `serve` and `doctor`, with a database of the user's own."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import URL

from inferplane.auth.v1 import auth_service_pb2 as pb
from inferplane.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from tests.conftest import execute
from tests.support.loop_thread import LoopThread
from tests.support.up import COMMAND

PASSWORD = "correct horse battery"


@pytest.fixture
def empty_database(postgres: URL, loop_thread: LoopThread) -> Iterator[URL]:
    """A database that was never migrated."""
    loop_thread.run(execute(postgres, "CREATE DATABASE never_migrated"))
    yield postgres.set(database="never_migrated")
    loop_thread.run(execute(postgres, "DROP DATABASE never_migrated WITH (FORCE)"))


def environment(url: URL, keys_dir: Path, data_dir: Path) -> dict[str, str]:
    return {
        **os.environ,
        "INFERPLANE_DATABASE_URL": url.render_as_string(hide_password=False),
        "INFERPLANE_MASTER_KEY_FILE": str(keys_dir / "master.key"),
        "INFERPLANE_WORKLOAD_KEYS_DIR": str(keys_dir),
        "INFERPLANE_DATA_DIR": str(data_dir),
        "INFERPLANE_METRICS_BASE_PORT": "0",
    }


def run(variables: dict[str, str], *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [str(COMMAND), *map(str, arguments)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)


def test_serve_refuses_a_database_that_was_not_migrated(empty_database: URL, keys_dir: Path, tmp_path: Path) -> None:
    refused = run(environment(empty_database, keys_dir, tmp_path), "serve", "auth", "--port", "0")
    assert refused.returncode == 1
    assert "inferplane db migrate" in refused.stderr


def test_two_migrations_at_once_do_no_harm(empty_database: URL, keys_dir: Path, tmp_path: Path) -> None:
    variables = environment(empty_database, keys_dir, tmp_path)
    both = [subprocess.Popen([COMMAND, "db", "migrate"], env=variables, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]


def test_migrate_then_admin_then_serve_then_login(empty_database: URL, keys_dir: Path, tmp_path: Path) -> None:
    variables = environment(empty_database, keys_dir, tmp_path)
    assert run(variables, "db", "migrate").returncode == 0
    assert run(variables, "db", "migrate").returncode == 0
    (tmp_path / "password").write_text(PASSWORD + "\n")
    arguments = ("db", "create-admin", "--username", "root", "--password-file", tmp_path / "password")
    assert "Created" in run(variables, *arguments).stdout
    assert "already" in run(variables, *arguments).stdout
    server = subprocess.Popen(
        [COMMAND, "serve", "auth", "--port", "0"], env=variables, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        address = next(found[1] for line in server.stderr if (found := re.search(r"serves on (\S+)", line)))
        with grpc.insecure_channel(address) as channel:
            stub: Any = AuthServiceStub(channel)  # type: ignore[arg-type] # the stub is typed for grpc.aio
            answer = stub.Login(pb.LoginRequest(username="root", password=PASSWORD), timeout=20)
            assert answer.tokens.access_token
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
    assert server.returncode == 0


def test_an_administrator_with_a_bad_name_is_refused_with_what_a_name_is(
    database_url: URL, keys_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    arguments = ("db", "create-admin", "--username", "Admin", "--password-file", tmp_path / "password")
    done = run(environment(database_url, keys_dir, tmp_path), *arguments)
    assert done.returncode == 1
    assert "user_id must match" in " ".join(done.stderr.split())
    assert PASSWORD not in done.stderr


def test_doctor_checks_dependencies_and_masks_secrets(database_url: URL, keys_dir: Path, tmp_path: Path) -> None:
    variables = environment(database_url, keys_dir, tmp_path)
    done = run(variables, "doctor", "--json")
    report = json.loads(done.stdout)
    checks = {check["check"]: check["ok"] for check in report["checks"]}
    assert checks["postgres"] is True
    assert checks["keys"] is True
    assert report["settings"]["database_url"] == "set (hidden)"
    assert str(database_url.password) not in done.stdout + done.stderr


def test_doctor_goes_on_where_one_check_cannot_be_made(database_url: URL, keys_dir: Path, tmp_path: Path) -> None:
    key = tmp_path / "short.key"
    key.touch(0o600)
    key.write_bytes(b"short")
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    variables = {
        **environment(database_url, keys_dir, tmp_path),
        "INFERPLANE_MASTER_KEY_FILE": str(key),
        "INFERPLANE_DATABASE_URL": url,
    }
    done = run(variables, "doctor", "--json")
    checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    assert (done.returncode, checks["keys"]["ok"]) == (1, False)
    assert checks["postgres"]["ok"]
    assert run(variables, "db", "migrate").returncode == 0


def test_doctor_says_what_is_unfit(empty_database: URL, keys_dir: Path, tmp_path: Path) -> None:
    variables = {**environment(empty_database, keys_dir, tmp_path), "INFERPLANE_TRITON_ENDPOINT": "127.0.0.1:1"}
    done = run(variables, "doctor", "--json")
    checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1
    assert "inferplane db migrate" in checks["postgres"]["detail"]
    assert "does not answer" in checks["triton"]["detail"]


def test_a_setting_that_is_not_valid_is_named(database_url: URL, keys_dir: Path, tmp_path: Path) -> None:
    variables = {**environment(database_url, keys_dir, tmp_path), "INFERPLANE_WORKERS": "many"}
    done = run(variables, "serve", "auth")
    assert done.returncode == 1
    assert "workers" in done.stderr
    assert "Traceback" not in done.stderr
