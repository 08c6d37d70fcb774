"""A disk of its own, so small that a test can fill it."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import pytest

__all__ = ["full", "small_disk"]

FILLING = "fills the disk"


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes below `directory`; skips the test for who is not root. Root must be able to:
    where everybody skips, nothing is shown."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    place = directory / "disk"
    place.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", f"size={size}", "inferplane-test", place], check=True)
    try:
        yield place
    finally:
        # Lazily, so that it goes even if something that the test has started still holds it.
        subprocess.run(["/bin/umount", "--lazy", place], check=True)


@contextmanager
def full(place: Path) -> Iterator[None]:
    """Fill the disk to its last byte, and again whatever becomes free meanwhile; then free it."""
    done = threading.Event()
    file = place / FILLING
    with file.open("wb", buffering=0) as filling:
        _fill(filling)

        def keep_full() -> None:
            while not done.wait(0.01):
                _fill(filling)

        thread = threading.Thread(target=keep_full)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            file.unlink()


def _fill(filling: FileIO) -> None:
    for size in (1 << 20, 4096, 1):
        with suppress(OSError):
            while True:
                filling.write(bytes(size))
