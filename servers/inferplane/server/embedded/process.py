"""Other programs as our children: their environment, their death with us, their rights, their end."""

import asyncio
import contextlib
import fcntl
import os
import pwd
import shutil
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Launcher",
    "LauncherError",
    "child_environment",
    "dying_with_parent",
    "find_launcher",
    "lock_file",
    "processes_in",
    "run_program",
    "signal_processes",
    "stop_process",
    "works_in",
]

_PROBE_SECONDS = 10.0
# Everything else stays here: our environment holds secrets, and PG* variables would change the server.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")


def child_environment() -> dict[str, str]:
    """The few variables that a child program needs from our own environment."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def dying_with_parent(sig: signal.Signals) -> tuple[str, ...]:
    """Words to put before a command, so that the kernel sends it `sig` when its parent is gone.

    The parent is the *thread* that starts the command, hence the one that runs the event loop. Must come
    after anything that changes the user, because that clears the request (PR_SET_PDEATHSIG(2const)). Empty
    where `setpriv` is absent.
    """
    if shutil.which("setpriv") is None:
        return ()
    return ("setpriv", "--pdeathsig", sig.name.removeprefix("SIG"), "--")


async def run_program(
    command: Sequence[str | Path], *, seconds: float, pass_fds: Sequence[int] = ()
) -> tuple[int, str]:
    """Run a short-lived program; its exit status, and what it wrote to stdout and stderr.

    Raises OSError if it cannot be started and TimeoutError after `seconds`. It is killed when that happens
    and when the caller is cancelled.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=child_environment(),
        pass_fds=pass_fds,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    except BaseException:
        await stop_process(process, ())
        raise
    return await process.wait(), output.decode(errors="replace").strip()


async def stop_process(process: asyncio.subprocess.Process, steps: Iterable[tuple[signal.Signals, float]]) -> int:
    """End a child and return its exit status: each signal with the seconds it is given, at last SIGKILL."""
    for sig, grace in steps:
        if process.returncode is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(sig)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                return await process.wait()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return await process.wait()


def lock_file(path: Path) -> int | None:
    """The descriptor of `path`, created if absent and locked exclusively; None while another holds the lock.

    The lock lasts until every copy of the descriptor is closed, also those that children inherited.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def works_in(pid: int, folder: Path, program: str) -> bool:
    """Whether a process runs an executable called `program` with `folder` as its working directory.

    A zombie does not, and neither does another process that was given the pid since.
    """
    try:
        executable = Path(f"/proc/{pid}/exe").readlink().name
        if executable.removesuffix(" (deleted)") != program:
            return False
        return Path(f"/proc/{pid}/cwd").samefile(folder)
    except OSError:
        return False


def processes_in(folder: Path, program: str) -> list[int]:
    """The pids of all processes for which `works_in` holds."""
    pids = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [pid for pid in pids if works_in(pid, folder, program)]


def signal_processes(folder: Path, program: str, sig: signal.Signals, only: int | None = None) -> None:
    """Send a signal to the processes for which `works_in` holds, or to `only` one of them."""
    for pid in processes_in(folder, program):
        if only not in (None, pid):
            continue
        with contextlib.suppress(ProcessLookupError):
            # The descriptor stays with this process, so that the signal cannot hit a later owner of the pid.
            descriptor = os.pidfd_open(pid)
            try:
                if works_in(pid, folder, program):
                    signal.pidfd_send_signal(descriptor, sig)
            finally:
                os.close(descriptor)


class LauncherError(RuntimeError):
    """No way was found to run a program that refuses to run as the present user."""


@dataclass(frozen=True)
class Launcher:
    """How to start a program that refuses to run as root or as a user without an account.

    `prefix` goes before the command. `uid` and `gid` own, as seen from here, the files it works on.
    """

    prefix: tuple[str, ...]
    uid: int
    gid: int

    def hand_over(self, folder: Path) -> None:
        """Give a folder and everything in it to the program's user, if another owns the folder. Blocks."""
        if folder.stat().st_uid == self.uid:
            return
        for _, folders, files, descriptor in os.fwalk(folder, topdown=False):
            for name in (*folders, *files):
                os.chown(name, self.uid, self.gid, dir_fd=descriptor, follow_symlinks=False)
        # The folder comes last: were this interrupted, its old owner makes the next start do it again.
        os.chown(folder, self.uid, self.gid, follow_symlinks=False)


async def find_launcher(program: Path, folder: Path) -> Launcher:
    """The least intrusive way, tried out here and now, to run `program` on files below `folder`.

    As a user with an account: directly. Otherwise inside a user namespace, where our own files belong to an
    ordinary account; and where those are forbidden, as root, under the rights of such an account. Raises
    `LauncherError` if none of these works or reaches both paths.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0 and await asyncio.to_thread(_has_account, uid):
        return Launcher((), uid, gid)
    account = await asyncio.to_thread(_ordinary_account)
    inside = ("unshare", "--user", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}", "--")
    ways = [Launcher(inside, uid, gid)]
    if uid == 0:
        become = ("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--")
        ways.append(Launcher(become, account.pw_uid, account.pw_gid))
    problems = []
    for way in ways:
        problem = await _problem_with(way, program, folder)
        if problem is None:
            return way
        problems.append(f"{way.prefix[0]} (account {account.pw_name}, uid {account.pw_uid}): {problem}")
    raise LauncherError("; ".join(problems))


async def _problem_with(way: Launcher, program: Path, folder: Path) -> str | None:
    try:
        status, output = await run_program([*way.prefix, "true"], seconds=_PROBE_SECONDS)
        if status != 0:
            return f"not permitted here ({output or f'exit status {status}'})"
        for path in (program, folder):
            status, _ = await run_program([*way.prefix, "test", "-e", path], seconds=_PROBE_SECONDS)
            if status != 0:
                return f"cannot reach {path}, because a folder above it is closed to that account"
    except OSError as error:
        return str(error)
    return None


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _ordinary_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    for account in pwd.getpwall():
        if account.pw_uid != 0:
            return account
    raise LauncherError("there is no account but root's, and none of `postgres` or `nobody` exists")
