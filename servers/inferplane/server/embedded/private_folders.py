"""A program's own `/tmp` and `/dev/shm`, which end with it, where the system lets us make them."""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from inferplane.server.embedded.process import run_program

__all__ = ["TEMPORARY", "is_mounted_below", "private_folders"]

TEMPORARY = Path("/tmp")  # noqa: S108 - the folder that is to be hidden
_PROBE_SECONDS = 10.0

# What is installed below /tmp keeps its place there.
_SCRIPT = """
set -e
own=$1
here=$(pwd)
shift
while [ "$1" != -- ]; do
    mkdir -p "$own/${1#/tmp/}"
    mount --rbind "$1" "$own/${1#/tmp/}"
    shift
done
shift
mount --rbind "$own" /tmp
mount -t tmpfs -o mode=1777,nosuid,nodev none /dev/shm
# It may be below the real /tmp, where nothing is seen any more of what is not needed.
cd "$here" 2>/dev/null || cd /
exec "$@"
"""


async def private_folders(own: Path, needed: Iterable[Path]) -> tuple[str, ...]:
    """Words to put before a command, so that it finds the folder `own` at /tmp, and an empty /dev/shm.

    They run it in a mount namespace of its own, as root or else in a user namespace, under its own process id. Of
    what lies below the real /tmp it sees what is in `needed`. Empty where the system allows neither; tried out here
    and now.
    """
    kept = _below_temporary(needed)
    for unshare in (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount")):
        if "--user" not in unshare and os.geteuid() != 0:
            continue
        # Private, or our mounts would reach everybody else's /tmp.
        command = (*unshare, "--propagation=private", "--", "/bin/sh", "-c", _SCRIPT, "sh", str(own), *kept, "--")
        try:
            status, _ = await run_program((*command, sys.executable, "-c", ""), seconds=_PROBE_SECONDS)
        except OSError:
            return ()
        except TimeoutError:
            continue
        if status == 0:
            return command
    return ()


def is_mounted_below(folder: Path) -> bool:
    """Whether anything is mounted in `folder`, as this process sees it: then nobody may delete what is there."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    # Spaces and the like are written as \ooo (proc_pid_mountinfo(5)).
    points = (re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4]) for line in mounts)
    return any(Path(point).is_relative_to(folder) for point in points)


def _below_temporary(needed: Iterable[Path]) -> list[str]:
    kept: list[Path] = []
    for path in sorted({form for name in needed for form in (name.absolute(), name.resolve())}):
        if path.is_relative_to(TEMPORARY) and not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return [str(path) for path in kept]
