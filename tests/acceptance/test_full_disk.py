"""A full disk that everything lies on, the database, the logs and the ready file: nothing that was answered is lost."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import numpy as np
import pytest

from inferplane.client import Inferplane
from inferplane.client.errors import InferplaneClientError
from tests.support.http import fetch
from tests.support.onnx_models import identity
from tests.support.small_disk import full, small_disk
from tests.support.up import Up, running_up

SIZE = 256 << 20
"""An empty mesh takes 43 MiB of it."""
FULL = 12.0
"""Seconds. Long enough for all pauses of what is tried again."""
SERVICES = ("auth", "artifact", "inference", "reporting")
CALLS = re.compile(r'inferplane_rpc_calls_total\{code="(\w+)",method="([^"]+)".*} (.*)')
WAITING = "inferplane_prediction_records_waiting "
X = np.arange(4, dtype=np.float32)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, SIZE) as place:
        yield place


class Working:
    """A mesh on that disk; predictions that were answered, and the reasons of reads that failed, are kept."""

    def __init__(self, up: Up, plane: Inferplane) -> None:
        self.up = up
        self.plane = plane
        self.answered = 0
        self.failed_reads: list[str] = []

    async def round(self) -> None:
        """Ten predictions, none of which may fail, and a read from each service that has something to read."""
        for _ in range(10):
            assert (await self.plane.inference.predict("echo", {"x": X})).outputs["y"].tolist() == X.tolist()
            self.answered += 1
        plane = self.plane
        for read in (plane.artifact.get_version("echo:1"), plane.auth.whoami(), plane.reporting.metrics("echo")):
            try:
                await read
            except InferplaneClientError as error:
                self.failed_reads.append(error.reason)

    async def until_records_wait(self, count: int, seconds: float = 0) -> None:
        """Go on until that many records cannot be delivered, and for `seconds`."""
        began = time.monotonic()
        async with asyncio.timeout(120 + seconds):
            while self._waiting() < count or time.monotonic() - began < seconds:
                await self.round()

    async def until_all_is_recorded(self) -> float:
        """How many seconds that took; fails where they are more than 60, or where more is recorded than answered."""
        began, recorded = time.monotonic(), -1
        while recorded < self.answered:
            assert time.monotonic() - began < 60, f"{recorded} records of {self.answered} predictions"
            try:
                recorded = sum(version.call_count for version in await self.plane.reporting.metrics("echo"))
            except InferplaneClientError:
                await asyncio.sleep(0.1)
        assert recorded == self.answered
        return time.monotonic() - began

    def failed_calls(self) -> Counter[str]:
        """How many calls of which method failed, by the services' own count: clients repeat some calls unseen."""
        failed = Counter[str]()
        for service in SERVICES:
            for line in fetch(self.up.endpoints["metrics"][service], "/metrics")[1].splitlines():
                if (match := CALLS.match(line)) and match[1] != "OK":
                    failed[match[2]] += int(float(match[3]))
        return failed

    def _waiting(self) -> float:
        lines = fetch(self.up.endpoints["metrics"]["inference"], "/metrics")[1].splitlines()
        return next(float(line.removeprefix(WAITING)) for line in lines if line.startswith(WAITING))


@asynccontextmanager
async def working(disk: Path) -> AsyncIterator[Working]:
    """Every call is logged. All workers are the same in the end, and some of what they logged is lost, or else the disk
    was not full."""
    with running_up(disk, environment={"INFERPLANE_LOG_LEVEL": "info"}) as up:
        async with up.admin() as plane:
            path = disk / "echo.onnx"
            path.write_bytes(identity("FP32").SerializeToString())
            await plane.artifact.push("echo", path)
            await plane.inference.deploy("echo")
            up.refresh()
            before = {name: up.pids[name] for name in (*SERVICES, "triton")}
            yield Working(up, plane)
            up.refresh()
            assert {name: up.pids[name] for name in (*SERVICES, "triton")} == before
        assert "log_lines_lost" in (up.data_dir / "logs" / "services.log").read_text()


async def end_database(up: Up) -> None:
    """Make it begin a new file of its journal, for which there is no room: it ends itself (PANIC)."""
    folder = up.data_dir / "postgres"
    password = (folder / "owner.password").read_text().strip()
    host = str(folder / "socket")
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        while True:
            connection = await asyncpg.connect(
                user="inferplane", password=password, host=host, port=5432, database="inferplane"
            )
            try:
                await connection.execute("SELECT pg_switch_wal()")
                await connection.execute("SELECT pg_logical_emit_message(false, 'a test', 'something to write')")
            finally:
                connection.terminate()


async def survive_full_disk(disk: Path, seconds: float) -> None:
    async with working(disk) as mesh:
        await mesh.round()
        failed_before = mesh.failed_calls()
        with full(disk):
            await mesh.until_records_wait(300, seconds)
        await mesh.round()
        took = await mesh.until_all_is_recorded()
        print(f"{mesh.answered} predictions; all recorded {took:.1f} s after there was room again")
        assert mesh.failed_reads == []
        assert set(mesh.failed_calls() - failed_before) == {"IngestPredictions"}


async def test_a_full_disk_fails_no_read_and_loses_no_record(disk: Path) -> None:
    await survive_full_disk(disk, FULL)


async def test_a_database_that_ended_itself_on_a_full_disk_comes_back_and_no_record_is_lost(disk: Path) -> None:
    async with working(disk) as mesh:
        await mesh.round()
        database = mesh.up.pids["postgres"]
        with full(disk):
            await mesh.until_records_wait(100)
            await end_database(mesh.up)
            await mesh.until_records_wait(110, FULL)
        await mesh.until_all_is_recorded()
        # What needs the database has failed meanwhile, saying so.
        assert set(mesh.failed_reads) <= {"DEPENDENCY_UNAVAILABLE"}
        mesh.failed_reads.clear()
        await mesh.round()
        assert mesh.failed_reads == []
        ready = json.loads(mesh.up.ready_file.read_text())
        assert ready["pids"]["postgres"] != database


@pytest.mark.soak
async def test_a_disk_that_is_full_for_a_minute_fails_no_read_and_loses_no_record(disk: Path) -> None:
    await survive_full_disk(disk, seconds=60)
