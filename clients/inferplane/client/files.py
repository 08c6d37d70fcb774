"""Small private files: written whole or not at all, locked between processes, refused when others can read."""

import fcntl
import os
import stat
import time
import uuid
from pathlib import Path

from inferplane.client.errors import ConfigurationError, Unavailable

_LOCK_POLL = 0.02


def make_private_folder(folder: Path) -> None:
    """Create a folder of mode 0700; one that exists keeps the mode that its owner gave it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Replace a file atomically and durably by one of mode 0600."""
    make_private_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_private(path: Path) -> bytes | None:
    """Read a file that only its owner may read; None where there is none.

    Raises ConfigurationError where the file's mode lets anybody else at it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise ConfigurationError(
                f"{path} has mode {mode:04o}, so others can read your credentials; "
                f"run: chmod 600 '{path}' (and log in anew if somebody may have read it)",
                reason="CREDENTIALS_EXPOSED",
                metadata={"path": str(path)},
            )
        return file.read()


class FileLock:
    """An exclusive flock, held by one process (and one holder inside of it) at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self, timeout: float) -> None:
        """Wait for the lock, at most `timeout` seconds; blocks the thread. Raises Unavailable."""
        make_private_folder(self._path.parent)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + timeout
        try:
            while not _try_lock(descriptor):
                self._keep_waiting(deadline, timeout)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _keep_waiting(self, deadline: float, timeout: float) -> None:
        if time.monotonic() > deadline:
            raise Unavailable(f"another process has held {self._path} for {timeout:.0f} s")
        # flock(2) waits for ever or not at all.
        time.sleep(_LOCK_POLL)

    def release(self) -> None:
        """Give the lock back; does nothing where it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
