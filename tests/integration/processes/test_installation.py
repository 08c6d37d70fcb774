"""What `up` does beside starting its parts."""

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from inferplane.server.embedded.postgres import EmbeddedPostgres
from inferplane.server.processes import installation
from inferplane.server.processes.installation import Mesh
from inferplane.server.processes.protocol import Job
from inferplane.server.processes.supervisor import Supervisor, WorkerStartError
from inferplane.server.settings import ServiceName, Settings
from tests.support.mesh import until


async def test_logs_are_bounded_while_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "LOG_INTERVAL", 0.01)
    monkeypatch.setattr(installation, "MAX_LOG_SIZE", 1000)
    mesh = Mesh(Settings(data_dir=tmp_path))
    mesh.postgres = EmbeddedPostgres(tmp_path / "postgres")
    (tmp_path / "postgres").mkdir()
    async with AsyncExitStack() as stack:
        mesh.open_data_dir(stack)
        assert mesh.log is not None
        for log, size in ((mesh.log, 1001), (mesh.postgres.log, (4 << 20) + 1)):
            older = log.path.with_name(f"{log.path.name}.1")
            with os.fdopen(log.open(), "ab") as file:
                file.write(b"x" * size)
                file.flush()
                await until(lambda older=older: older.exists() and older.stat().st_size, timeout=30)  # type: ignore[misc]
                file.write(b"after\n")
            assert log.path.read_bytes() == b"after\n"


async def test_a_log_that_cannot_be_bounded_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant in ("LOG_INTERVAL", "LOG_PAUSE"):
        monkeypatch.setattr(installation, constant, 0.01)
    monkeypatch.setattr(installation, "MAX_LOG_SIZE", 1000)
    mesh = Mesh(Settings(data_dir=tmp_path))
    async with AsyncExitStack() as stack:
        mesh.open_data_dir(stack)
        assert mesh.log is not None
        obstacle = tmp_path / "logs" / ".services.log.copy"
        obstacle.mkdir()
        with os.fdopen(mesh.log.open(), "ab") as file:
            file.write(b"x" * 1001)
        older = tmp_path / "logs" / "services.log.1"
        tries: list[BaseException] = []
        bound = mesh.log.bound

        def counted() -> bool:
            try:
                return bound()
            except OSError as error:
                tries.append(error)
                raise

        monkeypatch.setattr(mesh.log, "bound", counted)
        await until(lambda: len(tries) > 2, timeout=30)
        assert not older.exists()
        obstacle.rmdir()
        await until(older.exists, timeout=30)


async def test_who_waits_for_what_does_not_serve_is_told_which_and_where_triton_should_be(tmp_path: Path) -> None:
    mesh = Mesh(Settings(data_dir=tmp_path, triton_endpoint="127.0.0.1:1"))
    waiting, serving = Supervisor([Job("inference", "", 1, 0)], 1.0), Supervisor([Job("auth", "", 1, 0)], 1.0)
    serving.workers[0].serving = True
    mesh.supervisors = {ServiceName.AUTH: serving, ServiceName.INFERENCE: waiting}
    with pytest.raises(WorkerStartError, match=r"^inference did not serve .* does Triton at 127.0.0.1:1 answer"):
        await mesh.until_serving(0.01)
