"""Logging while the log cannot be written, in a process of its own, because logging is configured for a process."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from inferplane.server import log_pace
from inferplane.server.logging import LINES_A_SECOND, LONGEST, _Bridge
from inferplane.server.standard_error import StandardError

PROGRAM = """
import logging, os, signal, sys, warnings
import structlog
from inferplane.server.logging import configure_logging

class Unreadable:
    def __repr__(self):
        raise RuntimeError("no")

output = configure_logging("info", service="test")
log = structlog.get_logger()
log.info("structured", number=1)
log.error("unreadable", value=Unreadable())
logging.getLogger("library").error("of the library %s", "formatted")
logging.getLogger("library").error("wrong arguments %d %d", "x")
warnings.warn("a warning")
signal.signal(signal.SIGUSR1, lambda *_: log.warning("in a signal handler"))
os.kill(os.getpid(), signal.SIGUSR1)
try:
    raise ValueError("why")
except ValueError:
    log.exception("failed")
print(output.lost)
"""
LINES = 7


def run(stderr: int) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True, timeout=60)


def test_every_way_to_log_gives_a_json_line() -> None:
    result = run(subprocess.PIPE)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["event"] for line in lines][:4] == [
        "structured",
        "unreadable",
        "of the library formatted",
        "wrong arguments %d %d",
    ]
    assert {line["level"] for line in lines} == {"info", "warning", "error"}
    assert "ValueError: why" in lines[-1]["exception"]
    assert (len(lines), result.stdout.strip()) == (LINES, "0")


def test_what_a_full_disk_does_not_take_is_counted_and_raises_nothing() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert run(full).stdout.strip() == str(LINES)
    finally:
        os.close(full)


def test_what_a_closed_pipe_does_not_take_is_counted_and_raises_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(writer).stdout.strip() == str(LINES)
    finally:
        os.close(writer)


def test_a_process_without_standard_error_logs_into_nobody_elses_file(tmp_path: Path) -> None:
    other = tmp_path / "other"
    program = f"held = open({str(other)!r}, 'w'); assert held.fileno() == 2\n{PROGRAM}"
    command = ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert result.stdout.strip() == str(LINES)
    assert other.read_text() == ""


class Libraries:
    """Say what they are told to, in seconds that pass on command."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self._bridge = _Bridge()
        monkeypatch.setattr(log_pace, "time", SimpleNamespace(monotonic=lambda: self.now))

    def say(self, name: str, text: str) -> None:
        self._bridge.handle(logging.makeLogRecord({"name": name, "levelno": logging.ERROR, "msg": text}))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Libraries:
    return Libraries(monkeypatch)


def test_what_a_library_says_without_end_is_counted_and_not_written(libraries: Libraries) -> None:
    with capture_logs() as lines:
        for _ in range(1000):
            libraries.say("noisy", "again")
        libraries.now += 1
        libraries.say("noisy", "later")
    assert [line["lines_suppressed"] for line in lines] == [None] * LINES_A_SECOND + [1000 - LINES_A_SECOND]


def test_a_library_that_says_much_silences_no_other(libraries: Libraries) -> None:
    with capture_logs() as lines:
        for _ in range(1000):
            libraries.say("noisy", "again")
        libraries.say("quiet", "once")
    assert lines[-1]["event"] == "once"


def test_what_a_library_says_is_cut(libraries: Libraries) -> None:
    with capture_logs() as lines:
        libraries.say("noisy", "x" * 60_000)
    assert len(lines[0]["event"]) == LONGEST


UNSEEN = """
import logging
from inferplane.server.logging import configure_logging

configure_logging("error")
for _ in range(1000):
    logging.getLogger("library").warning("unseen")
logging.getLogger("library").error("seen")
"""


def test_what_is_below_the_level_silences_nothing_above_it() -> None:
    command = [sys.executable, "-c", UNSEEN]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True, timeout=60)
    assert [json.loads(line)["event"] for line in result.stderr.splitlines()] == ["seen"]


@pytest.fixture
def pipe() -> tuple[int, int]:
    return os.pipe()


def test_a_reader_that_hangs_is_waited_for_once(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with os.fdopen(reader, "rb"), os.fdopen(writer, "wb"):
        output = StandardError(writer)
        began = time.monotonic()
        for _ in range(10_000):
            output.write("x" * 99 + "\n")
        # To wait for each of them would take minutes.
        assert time.monotonic() - began < 10
        assert 9_000 < output.lost < 10_000


def test_once_it_is_read_again_a_line_says_how_much_is_lost(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "wb"):
        output = StandardError(writer)
        for _ in range(1_000):
            output.write("x" * 999 + "\n")
        lost = output.lost
        os.read(reader, 1 << 20)
        output.write("back\n")
        assert read.readline() in (b"back\n", b"\n")
        while (line := read.readline()) in (b"back\n", b"\n"):
            pass
        assert json.loads(line) == {"event": "log_lines_lost", "lines": lost, "level": "error"}
        assert output.lost == lost


def test_a_torn_line_does_not_spoil_the_next(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "wb"):
        output = StandardError(writer)
        output.write("y" * (1 << 20) + "\n")
        assert output.lost == 1
        os.read(reader, 1 << 20)
        output.write("whole\n")
        assert read.readline() == b"\n"
        assert read.readline() == b"whole\n"


def test_lines_of_many_threads_stay_whole(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    written = os.fdopen(writer, "wb")
    output = StandardError(writer)

    def speak(letter: str) -> None:
        # Never more in all than the pipe holds.
        for _ in range(50):
            output.write(letter * 200 + "\n")

    threads = [threading.Thread(target=speak, args=(letter,)) for letter in "abcde"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written.close()
    with os.fdopen(reader, "rb") as read:
        lines = read.read().splitlines()
    assert sorted(set(lines)) == [letter.encode() * 200 for letter in "abcde"]
    assert len(lines) == 250


def test_a_reader_that_is_slow_all_the_time_does_not_hold_the_writer_up_all_the_time() -> None:
    reader, writer = os.pipe()
    stop = threading.Event()

    def read_slowly() -> None:
        while not stop.is_set():
            os.read(reader, 4096)
            time.sleep(0.04)

    reading = threading.Thread(target=read_slowly)
    reading.start()
    output = StandardError(writer)
    began, waited = time.monotonic(), 0.0
    while time.monotonic() - began < 3:
        before = time.monotonic()
        output.write("x" * 200 + "\n")
        waited += time.monotonic() - before
        time.sleep(0.0005)
    stop.set()
    os.close(writer)
    reading.join()
    os.close(reader)
    assert output.lost > 0
    assert waited < 1.0
