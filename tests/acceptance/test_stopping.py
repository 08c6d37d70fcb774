"""Ctrl-C, as a terminal sends it: to every process of the foreground group."""

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from tests.support.onnx_models import identity
from tests.support.up import COMMAND, Up, running_up, wait_for


def started(directory: Path) -> "subprocess.Popen[str]":
    """`inferplane up`, as the leader of a group of its own; ready when `ready.json` is there."""
    command: list[str | Path] = [COMMAND, "up", "--base-port", "0", "--data-dir", directory / "data"]
    return subprocess.Popen(
        [*command, "--ready-file", directory / "ready.json"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_ctrl_c_stops_everything_and_leaves_nothing(tmp_path: Path) -> None:
    ready_file, process = tmp_path / "ready.json", started(tmp_path)
    wait_for(lambda: ready_file.exists() or process.poll() is not None, 60)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) > 5
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert not ready_file.exists()
    assert not psutil.wait_procs(family, 10)[1]


def preparing(process: "subprocess.Popen[str]") -> bool:
    """Whether the child is there that prepares the database."""
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if "inferplane.server.processes.prepare" in child.cmdline():
                return True
    return False


def test_ctrl_c_while_the_database_is_prepared_leaves_no_traceback_and_nothing_else(tmp_path: Path) -> None:
    process = started(tmp_path)
    wait_for(lambda: preparing(process) or process.poll() is not None, 60)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert not psutil.wait_procs(family, 10)[1]
    with running_up(tmp_path):
        pass


def test_the_last_predictions_are_recorded_before_the_end(tmp_path: Path) -> None:
    async def predict(up: Up, calls: int) -> None:
        async with up.admin() as plane:
            path = tmp_path / "echo.onnx"
            path.write_bytes(identity("FP32").SerializeToString())
            await plane.artifact.push("echo", path)
            await plane.inference.deploy("echo")
            values = {"x": np.zeros(1, dtype=np.float32)}
            await asyncio.gather(*(plane.inference.predict("echo", values) for _ in range(calls)))

    async def recorded(up: Up) -> int:
        async with up.admin() as plane:
            return sum(version.call_count for version in await plane.reporting.metrics("echo"))

    with running_up(tmp_path) as up:
        asyncio.run(predict(up, 300))
        # Stopped in the instant after the last answer, while notes are still waiting.
    with running_up(tmp_path) as up:
        assert asyncio.run(recorded(up)) == 300


def test_a_taken_port_is_named_and_nothing_is_left_running(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        port = int(up.endpoints["auth"].rpartition(":")[2])
        command: list[str | Path] = [COMMAND, "up", "--base-port", str(port), "--data-dir", tmp_path / "second"]
        refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert refused.returncode == 1
        assert f":{port}" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_second_mesh_in_the_same_directory_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        command: list[str | Path] = [COMMAND, "up", "--base-port", "0", "--data-dir", up.data_dir]
        refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert refused.returncode == 1
        assert "another" in refused.stderr
        assert up.status("auth", "") == 1
