"""How much memory a process takes at most meanwhile."""

import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["growth"]


def growth(pid: int) -> Callable[[], int]:
    """Gives by how many bytes the process's resident memory has grown since, at its highest (proc_pid_status(5))."""
    # Forgets the highest there ever was (proc_pid_clear_refs(5)).
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = _status(pid, "VmRSS")
    return lambda: _status(pid, "VmHWM") - before


def _status(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10
