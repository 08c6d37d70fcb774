"""A machine that runs out of something: the mesh goes on, and mends itself when there is enough again."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.up import COMMAND, SERVING, Up, running_up, wait_for

NO_MORE = 4
"""Every descriptor up to this one is in use, so that a process with this limit can open nothing."""


@contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """The process can open nothing; what it has open it keeps."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (NO_MORE, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def events(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def replaced(up: Up, victims: dict[str, int]) -> bool:
    pids = json.loads(up.ready_file.read_text())["pids"]
    return all(pids.get(name, pid) != pid for name, pid in victims.items())


@pytest.fixture
def own_up(tmp_path: Path) -> Iterator[Up]:
    with running_up(tmp_path) as up:
        yield up


def test_what_dies_while_up_has_no_descriptors_is_replaced_when_it_has(own_up: Up, tmp_path: Path) -> None:
    up = own_up
    victims = {name: up.pids[name] for name in ("auth", "inference", "postgres", "triton")}
    with without_descriptors(up.process.pid):
        for pid in victims.values():
            os.kill(pid, signal.SIGKILL)

        def tried() -> bool:
            said = events(tmp_path / "up.log")
            services = {line["service"] for line in said if line["event"] == "worker_not_started"}
            parts = {line["part"] for line in said if line["event"] == "part_not_started"}
            return services >= {"auth", "inference"} and parts == {"postgres", "triton"}

        wait_for(lambda: up.process.poll() is not None or tried(), 30)
        assert up.process.poll() is None
    wait_for(lambda: replaced(up, victims), 60)
    wait_for(lambda: all(up.status(service, "") == SERVING for service in ("auth", "inference")), 60)


def test_a_ready_file_that_cannot_be_written_is_written_later(own_up: Up, tmp_path: Path) -> None:
    up = own_up
    before = up.pids["auth"]
    # In place of a full disk: a name that nobody can make a file of.
    up.ready_file.unlink()
    up.ready_file.mkdir()
    (up.ready_file / "in the way").touch()
    os.kill(before, signal.SIGKILL)
    log = tmp_path / "up.log"
    wait_for(lambda: up.process.poll() is not None or "ready_file_not_written" in log.read_text(), 30)
    (up.ready_file / "in the way").unlink()
    up.ready_file.rmdir()
    wait_for(lambda: up.process.poll() is not None or up.ready_file.exists(), 30)
    assert up.process.poll() is None
    wait_for(lambda: replaced(up, {"auth": before}), 30)
    wait_for(lambda: up.status("auth", "") == SERVING, 30)


@pytest.mark.parametrize("how", ["full", "closed", "unread"])
def test_up_starts_and_stops_though_nobody_can_be_told(tmp_path: Path, how: str) -> None:
    reader, writer = os.pipe()
    if how == "unread":
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
    elif how == "closed":
        os.close(reader)
    else:
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    ready_file = tmp_path / "ready.json"
    arguments: list[str | Path] = ["--base-port", "0", "--data-dir", tmp_path / "data", "--ready-file", ready_file]
    process = subprocess.Popen([COMMAND, "up", *arguments], stderr=writer)
    try:
        wait_for(lambda: ready_file.exists() or process.poll() is not None, 60)
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(writer)
        if how != "closed":
            os.close(reader)
