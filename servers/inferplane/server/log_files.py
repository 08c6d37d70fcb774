"""Log files of bounded size, also those that other programs write to."""

import contextlib
import os
import shutil
from pathlib import Path

__all__ = ["LogFile"]

_PIECE = 1 << 20


class LogFile:
    """A log file that any number of processes append to, and `kept` older ones beside it, `.1` the youngest.

    The writers hold descriptors that they inherited and will not open again, so the file is copied and then cut to
    nothing: for that each must have it open with O_APPEND. What is written between the end of the copy and the cut is
    lost: microseconds, unless the processor is taken away just then. Methods block, and raise OSError, after which the
    log is as it was.
    """

    def __init__(self, path: Path, most_bytes: int, kept: int = 3) -> None:
        self.path = path
        self._most = most_bytes
        self._kept = kept

    def open(self) -> int:
        """A descriptor for a writer; the file is made with mode 0600, because logs name callers and models."""
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def bound(self) -> bool:
        """Put what is written aside if it is more than `most_bytes`; whether it was."""
        try:
            if self.path.stat().st_size <= self._most:
                return False
        except FileNotFoundError:
            return False
        copy = self.path.with_name(f".{self.path.name}.copy")
        try:
            self._move(copy)
        finally:
            copy.unlink(missing_ok=True)
        return True

    def put_away(self) -> None:
        """Begin anew: for a log that nobody has open."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size:
                self._shift()
                self.path.replace(self._older(1))

    def _move(self, copy: Path) -> None:
        target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(target, "wb") as copied, self.path.open("r+b", buffering=0) as log:
            shutil.copyfileobj(log, copied, _PIECE)
            copied.flush()
            self._shift()
            copy.replace(self._older(1))
            # What came while the others were renamed.
            shutil.copyfileobj(log, copied, _PIECE)
            copied.flush()
            log.truncate(0)

    def _shift(self) -> None:
        for number in range(self._kept - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._older(number).replace(self._older(number + 1))

    def _older(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")
