"""Logs that stay within bounds while others write to them."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferplane.server.log_files import LogFile
from tests.support.small_disk import small_disk

LIMIT = 20_000
WRITER = """
import os, sys
for number in range(int(sys.argv[2])):
    os.write(2, f"{sys.argv[1]} {number} {'x' * 80}\\n".encode())
"""


def lines(folder: Path) -> list[str]:
    return [line for file in folder.iterdir() for line in file.read_text().splitlines()]


def write(log: LogFile, content: bytes) -> None:
    with os.fdopen(log.open(), "ab") as file:
        file.write(content)


def test_processes_that_hold_it_open_go_on_writing_to_the_bounded_file(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 25 * LIMIT, kept=200)
    count = 20_000
    with os.fdopen(log.open(), "ab") as file:
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, f"w{n}", str(count)], stderr=file) for n in range(3)]
        rounds = 0
        while any(writer.poll() is None for writer in writers):
            rounds += log.bound()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert rounds > 1
    found = [line for line in lines(tmp_path) if line.endswith("x" * 80) and line.count("w") == 1]
    assert len(set(found)) == len(found)
    # A round may lose what is written while this process waits for a processor, which three others keep busy.
    assert len(found) > 0.5 * 3 * count
    log.bound()
    assert (tmp_path / "log").stat().st_size <= 25 * LIMIT


def test_no_more_than_so_many_old_ones_are_kept(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 4, kept=3)
    for number in range(6):
        write(log, b"round %d\n" % number)
        assert log.bound()
    assert {file.name for file in tmp_path.iterdir()} == {"log", "log.1", "log.2", "log.3"}
    assert [(tmp_path / f"log.{n}").read_text() for n in (1, 2, 3)] == ["round 5\n", "round 4\n", "round 3\n"]


def test_a_small_or_missing_log_is_left_alone(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", LIMIT)
    assert not log.bound()
    write(log, b"small\n")
    assert not log.bound()
    assert lines(tmp_path) == ["small"]


def test_logs_are_private(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", 1)
    write(log, b"caller\n")
    log.bound()
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_a_log_that_nobody_has_open_is_put_away(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log", LIMIT)
    log.put_away()
    for run in (b"first\n", b"second\n"):
        write(log, run)
        log.put_away()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"log.1": b"second\n", "log.2": b"first\n"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, 64 << 10) as place:
        yield place


def test_on_a_full_disk_the_log_and_its_old_ones_stay_as_they_were(disk: Path) -> None:
    log = LogFile(disk / "log", 1000)
    (disk / "log.1").write_text("old")
    write(log, b"y" * 40_000)
    with pytest.raises(OSError, match="No space left") as caught:
        log.bound()
    assert caught.value.errno == errno.ENOSPC
    assert {file.name for file in disk.iterdir()} == {"log", "log.1"}
    assert (disk / "log").read_bytes() == b"y" * 40_000
