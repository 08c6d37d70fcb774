"""Real worker processes under a supervisor."""

import asyncio
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from inferplane.auth.v1 import auth_service_pb2 as pb
from inferplane.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from inferplane.server.log_files import LogFile
from inferplane.server.processes import supervisor as supervision
from inferplane.server.processes.grpc_environment import GRPC_ENVIRONMENT
from inferplane.server.processes.ports import PortInUseError, ReservedPort
from inferplane.server.processes.protocol import Job
from inferplane.server.processes.supervisor import Supervisor, WorkerStartError
from inferplane.server.settings import Settings
from tests.support.http import fetch, get
from tests.support.mesh import until


@asynccontextmanager
async def supervised(settings: Settings, workers: int, log: Path) -> AsyncIterator[tuple[Supervisor, str]]:
    with closing(ReservedPort("127.0.0.1", 0)) as reserved:
        jobs = [Job("auth", settings.to_worker(), reserved.port, 0) for _ in range(workers)]
        supervisor = Supervisor(jobs, settings.drain_grace, LogFile(log, 1 << 20))
        await supervisor.start()
        try:
            yield supervisor, f"127.0.0.1:{reserved.port}"
        finally:
            await supervisor.stop()


async def answers(address: str) -> bool:
    """Whether a new connection gets an answer: each is given to one of the workers."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        await AuthServiceStub(channel).GetJwks(pb.GetJwksRequest(), timeout=10)
    return True


async def scraped(port: int) -> str:
    _, body = await asyncio.to_thread(fetch, f"127.0.0.1:{port}", "/metrics")
    return body


def pids(supervisor: Supervisor) -> list[int]:
    return [worker.process.pid for worker in supervisor.workers if worker.process]


async def test_workers_share_a_port_and_each_has_its_own(settings: Settings, tmp_path: Path) -> None:
    async with supervised(settings, 2, tmp_path / "log") as (supervisor, shared):
        own = [worker.ready.own_port for worker in supervisor.workers if worker.ready]
        assert len(set(own)) == 2
        for address in (shared, *(f"127.0.0.1:{port}" for port in own)):
            assert await answers(address)
        metrics = [worker.ready.metrics_port for worker in supervisor.workers if worker.ready]
        statuses = [await asyncio.to_thread(get, f"127.0.0.1:{port}", "/healthz") for port in metrics]
        assert statuses == [200, 200]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_dead_or_hung_worker_is_replaced_by_another(settings: Settings, tmp_path: Path, how: int) -> None:
    async with supervised(settings, 2, tmp_path / "log") as (supervisor, shared):
        before = pids(supervisor)
        os.kill(before[0], how)
        replaced: Any = supervisor.workers[0]
        await until(lambda: replaced.process and replaced.process.pid != before[0] and replaced.ready, timeout=30)
        assert pids(supervisor)[1] == before[1]
        assert all([await answers(shared) for _ in range(20)])


async def test_a_spawn_that_fails_is_tried_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervised(settings, 1, tmp_path / "log") as (supervisor, shared):
        failures = iter([OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOMEM, "Cannot allocate memory")])
        spawn = asyncio.create_subprocess_exec

        async def failing(*command: Any, **options: Any) -> asyncio.subprocess.Process:
            if (failure := next(failures, None)) is not None:
                raise failure
            return await spawn(*command, **options)

        monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)
        (worker,) = supervisor.workers
        (before,) = pids(supervisor)
        os.kill(before, signal.SIGKILL)
        await until(lambda: worker.restarts == 3 and worker.ready is not None, timeout=30)
        assert await answers(shared)
        assert next(failures, None) is None


async def test_stopping_does_not_wait_for_the_next_try(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(supervision, "FIRST_PAUSE", 3600.0)
    monkeypatch.setattr(supervision, "MOST_PAUSE", 3600.0)
    async with supervised(settings, 1, tmp_path / "log") as (supervisor, _):
        monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)
        (worker,) = supervisor.workers
        os.kill(pids(supervisor)[0], signal.SIGKILL)
        await until(lambda: worker.ready is None, timeout=30)
        async with asyncio.timeout(30):
            await supervisor.stop()


async def test_a_first_spawn_that_fails_says_why(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*command: Any, **options: Any) -> asyncio.subprocess.Process:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", failing)
    with pytest.raises(WorkerStartError, match="Too many open files"):
        async with supervised(settings, 1, tmp_path / "log"):
            pass


async def test_workers_have_the_grpc_environment_unless_an_operator_set_another(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRPC_EXPERIMENTS")
    monkeypatch.setenv("GRPC_VERBOSITY", "ERROR")
    async with supervised(settings, 1, tmp_path / "log") as (supervisor, _):
        (pid,) = pids(supervisor)
        environment = psutil.Process(pid).environ()
    assert environment["GRPC_EXPERIMENTS"] == GRPC_ENVIRONMENT["GRPC_EXPERIMENTS"]
    assert environment["GRPC_VERBOSITY"] == "ERROR"


def test_this_grpc_knows_the_experiments_that_workers_leave_out() -> None:
    program = "import grpc; grpc.insecure_channel('127.0.0.1:1').close()"
    own = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}

    def said(experiments: str) -> str:
        environment = {**own, "GRPC_EXPERIMENTS": experiments}
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True).stderr

    assert "Unknown experiment" in said("-event_engine_clients")
    assert "Unknown experiment" not in said(GRPC_ENVIRONMENT["GRPC_EXPERIMENTS"])


async def test_a_worker_tells_how_often_it_was_started_again(settings: Settings, tmp_path: Path) -> None:
    async with supervised(settings, 1, tmp_path / "log") as (supervisor, _):
        (worker,) = supervisor.workers
        assert worker.ready is not None
        assert "inferplane_worker_restarts_total 0.0" in await scraped(worker.ready.metrics_port)
        os.kill(pids(supervisor)[0], signal.SIGKILL)
        await until(lambda: worker.restarts == 1 and worker.ready is not None, timeout=30)
        assert "inferplane_worker_restarts_total 1.0" in await scraped(worker.ready.metrics_port)


async def test_calls_are_answered_while_the_log_cannot_be_written(settings: Settings) -> None:
    talkative = settings.model_copy(update={"log_level": "info"})
    async with supervised(talkative, 1, Path("/dev/full")) as (supervisor, shared):
        assert all([await answers(shared) for _ in range(5)])
        (worker,) = supervisor.workers
        assert worker.ready is not None
        metrics = await scraped(worker.ready.metrics_port)
    (lost,) = re.findall(r"^inferplane_log_lines_lost_total (\S+)$", metrics, re.MULTILINE)
    assert float(lost) >= 5


async def test_a_worker_that_cannot_start_says_why_and_where_to_read_more(settings: Settings, tmp_path: Path) -> None:
    broken = settings.model_copy(update={"master_key_file": tmp_path / "absent"})
    with pytest.raises(WorkerStartError, match=f"absent.*{tmp_path / 'log'}"):
        async with supervised(broken, 1, tmp_path / "log"):
            pass
    assert "absent" in (tmp_path / "log").read_text()


async def test_settings_with_secrets_are_neither_in_argv_nor_in_the_environment(
    settings: Settings, tmp_path: Path
) -> None:
    assert settings.database_url is not None
    secret = settings.database_url.get_secret_value().encode()
    async with supervised(settings, 1, tmp_path / "log") as (supervisor, _):
        process = Path("/proc") / str(pids(supervisor)[0])
        assert secret not in await asyncio.to_thread((process / "cmdline").read_bytes)
        assert secret not in await asyncio.to_thread((process / "environ").read_bytes)
    assert secret not in (tmp_path / "log").read_bytes()


def test_a_port_that_somebody_listens_on_is_not_shared() -> None:
    held = ReservedPort("127.0.0.1", 0)
    with pytest.raises(PortInUseError, match=f"127.0.0.1:{held.port}.*INFERPLANE_BASE_PORT"):
        ReservedPort("127.0.0.1", held.port)
    held.close()


async def test_what_a_worker_said_while_we_stood_still_counts() -> None:
    """Such as after Ctrl-Z and fg: its heartbeats are there, and only have to be read."""
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        waiting = asyncio.create_task(supervision._next_line(reader, 0.2))
        await asyncio.sleep(0)
        theirs.send(b"{}\n")
        time.sleep(0.5)  # noqa: ASYNC251 - that is what is tested
        assert await waiting == b"{}\n"
        writer.close()


def test_a_worker_that_hangs_while_it_stops_ends_all_the_same() -> None:
    hang = "from inferplane.server.processes import worker; worker._end_in_any_case(0.2); import time; time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", hang], check=False, timeout=50).returncode == 1
