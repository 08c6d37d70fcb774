"""Triton Inference Server as a child of this process, from the `nvidia-pytriton` wheel."""

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import sys
from pathlib import Path

import structlog

from inferplane.server.embedded.private_folders import TEMPORARY, is_mounted_below, private_folders
from inferplane.server.embedded.process import dying_with_parent, lock_file, stop_process
from inferplane.server.embedded.triton_calls import TritonCalls
from inferplane.server.embedded.triton_watch import TritonWatch
from inferplane.server.embedded.triton_wheel import EmbeddedTritonError, TritonWheel, find_wheel
from inferplane.server.files import write_private
from inferplane.server.log_files import LogFile

__all__ = ["EmbeddedTriton", "EmbeddedTritonError"]

log = structlog.get_logger()

_HEADER_KEY = "inferplane"
_PROTOCOLS = "health,metadata,inference,shared-memory,model-config,model-repository,statistics,trace,logging"
_START_SECONDS = 60.0
_EXIT_SECONDS = 5
_PORT_ATTEMPTS = 5
_LOG_BYTES = 4 << 20
_LOG_TAIL_BYTES = 4096
_MODEL_FOLDER = re.compile(r"folder[A-Za-z0-9]{6}")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux


class _PortTakenError(Exception):
    """Somebody bound the chosen port first."""


class EmbeddedTriton:
    """One Triton on the loopback interface, which answers only calls that carry a random header.

    It serves gRPC alone, on the CPU, with the Python backend as its only backend, and dies with the thread
    that started it. A `data_dir` has at most one running Triton. One that hangs is killed, so that `wait` returns;
    a model whose process has died is unloaded; a model's process that goes on for `linger` seconds after its model
    was unloaded or replaced is killed.

    Triton writes the models that it is sent below `/tmp`, whatever it is told, and shares memory with their processes
    by `/dev/shm`. Where the system allows a mount namespace (to root, or by a user namespace), these are folders of
    its own: `/tmp` is in `data_dir`, and nothing of either is left by a kill, or after the next `start`.

    Known limits. Triton takes the header's value on its command line only, so every local user who may read
    `/proc/<pid>/cmdline` can learn it. Where namespaces are not allowed, models lie in the real `/tmp` (mode 0700)
    while they are loaded; after a kill they and the shared memory go at `stop` or at the next `start`, except for an
    empty folder `python_env_*`. A call whose model's process had to be killed keeps its model's memory in Triton
    until Triton ends, which then takes 5 s.
    """

    def __init__(self, data_dir: Path, *, linger: float = 40.0) -> None:
        self._data_dir = data_dir.resolve()
        self._run_dir = self._data_dir / "run"
        self._linger = linger
        self.log = LogFile(self._data_dir / "server.log", _LOG_BYTES)
        digest = hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()
        self._shm_prefix = f"inferplane_{digest[:16]}_"
        self._isolated: tuple[str, ...] = ()
        self._watch: asyncio.Task[None] | None = None
        self._lock: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._exit: asyncio.Task[int] | None = None
        self._port = 0
        self._secret = ""
        self._identity = ""

    @property
    def pid(self) -> int:
        """The process id. Raises RuntimeError before `start`."""
        if self._process is None:
            raise RuntimeError("Triton was not started")
        return self._process.pid

    @property
    def endpoint(self) -> str:
        """`127.0.0.1:PORT` of the gRPC service. Raises RuntimeError before `start`."""
        if self._process is None:
            raise RuntimeError("Triton was not started")
        return f"127.0.0.1:{self._port}"

    @property
    def header(self) -> tuple[str, str]:
        """Name and value of the metadata that every call must carry; new for each object, so that its callers
        need not learn another one after a restart.

        Raises RuntimeError before `start`. The same pair is in the file `header` (mode 0600).
        """
        if not self._secret:
            raise RuntimeError("Triton was not started")
        return f"triton-grpc-protocol-{_HEADER_KEY}", self._secret

    async def start(self, *, port: int | None = None) -> None:
        """Start Triton and wait until it is live and ready (at most 60 s).

        Takes a free port of the kernel's choice unless `port` is given. Raises EmbeddedTritonError, with the
        end of `server.log` where there is one, and RuntimeError when it runs already.
        """
        if self._process is not None and self._process.returncode is None:
            raise RuntimeError("Triton runs already")
        await self.stop()
        wheel = find_wheel()
        try:
            self._prepare(wheel)
            await self._isolate(wheel)
            await self._launch_on_port(wheel, port)
            self._watch = asyncio.create_task(self._watch_over())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End Triton: politely, after 7 s by force; remove what it leaves. May be called at any time."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
        if self._process is not None:
            await stop_process(self._process, ((signal.SIGTERM, _EXIT_SECONDS + 2.0),))
            await self.wait()
        if self._lock is not None:
            self._clean()
            os.close(self._lock)
            self._lock = None

    async def wait(self) -> int:
        """Wait until Triton has ended and return its exit status, negative for a signal."""
        if self._exit is None:
            raise RuntimeError("Triton was not started")
        return await asyncio.shield(self._exit)

    async def _launch_on_port(self, wheel: TritonWheel, port: int | None) -> None:
        for _ in range(_PORT_ATTEMPTS if port is None else 1):
            self._port = _free_port() if port is None else port
            try:
                await self._launch(wheel)
                return
            except _PortTakenError:
                if port is None:
                    # Whoever has that port has seen the header.
                    self._secret = ""
        raise EmbeddedTritonError(
            f"port {self._port} of 127.0.0.1 is taken; set INFERPLANE_TRITON_PORT to another for the embedded Triton"
        )

    def _prepare(self, wheel: TritonWheel) -> None:
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock_file(self._data_dir / "lock")
        if self._lock is None:
            raise EmbeddedTritonError(f"another process runs a Triton in {self._data_dir}")
        self._clean()
        backend = self._run_dir / "backends" / "python"
        for folder in (backend, self._run_dir / "models", self._temporary):
            folder.mkdir(mode=0o700, parents=True)
        self._folders.mkdir(mode=0o700, exist_ok=True)
        for part in (
            *wheel.backend.glob("*.so"),
            *wheel.backend.glob("*.py"),
            wheel.stub,
        ):
            (backend / part.name).symlink_to(part)
        self.log.put_away()

    async def _isolate(self, wheel: TritonWheel) -> None:
        needed = (Path(sys.prefix), Path(sys.base_prefix), wheel.packages, self._data_dir)
        self._isolated = await private_folders(self._temporary, needed)
        if not self._isolated:
            log.warning("triton_shares_tmp", reason="this system allows no mount namespaces")

    async def _watch_over(self) -> None:
        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

        async with TritonCalls(self.endpoint, self.header) as calls:
            await TritonWatch(self.pid, self._folders, calls, self._linger, kill).run()

    @property
    def _temporary(self) -> Path:
        """What Triton finds at /tmp, where namespaces are allowed."""
        return self._run_dir / "tmp"

    @property
    def _folders(self) -> Path:
        # Outside the run folder, which every start makes anew.
        return self._data_dir / "folders"

    def _clean(self) -> None:
        """Remove shared memory and model folders that a killed Triton left behind."""
        for region in _SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)
        for record in self._folders.glob("*"):
            folder = TEMPORARY / record.name
            # The record is written by code beside a model: never follow it out of Triton's own folders.
            if _MODEL_FOLDER.fullmatch(record.name) and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
            record.unlink(missing_ok=True)
        if is_mounted_below(self._run_dir):
            raise EmbeddedTritonError(f"something is mounted in {self._run_dir}; unmount it")
        shutil.rmtree(self._run_dir, ignore_errors=True)

    async def _launch(self, wheel: TritonWheel) -> None:
        if not self._secret:
            self._secret = secrets.token_hex(32)
        self._identity = f"inferplane-{secrets.token_hex(8)}"
        write_private(self._data_dir / "header", ": ".join(self.header).encode() + b"\n")
        with os.fdopen(self.log.open(), "ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._isolated,
                *dying_with_parent(signal.SIGKILL),
                *(str(wheel.binary), *self._arguments()),
                cwd=self._run_dir,
                env=self._environment(wheel),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A group of its own: Ctrl-C reaches the owner alone, and the stubs can be ended with it.
                start_new_session=True,
            )
        self._exit = asyncio.create_task(self._reap(self._process))
        await self._until_ready(self._exit, self._data_dir / "server.log")

    def _arguments(self) -> tuple[str, ...]:
        # Relative paths, because Triton starts the stub by an unquoted line of bash.
        return (
            f"--id={self._identity}",
            "--model-repository=models",
            "--backend-directory=backends",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self._port}",
            f"--grpc-restricted-protocol={_PROTOCOLS}:{_HEADER_KEY}={self._secret}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--log-info=false",
            "--pinned-memory-pool-byte-size=0",
            # A load that never ends keeps its thread for ever, also when nobody waits for it any more.
            "--model-load-thread-count=8",
            f"--exit-timeout-secs={_EXIT_SECONDS}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
        )

    def _environment(self, wheel: TritonWheel) -> dict[str, str]:
        return {
            # The stub embeds Python and finds this environment's packages through `python3` on the path.
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), "/usr/bin", "/bin")),
            "LD_LIBRARY_PATH": wheel.library_path,
            "LC_ALL": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "INFERPLANE_TRITON_FOLDERS": str(self._folders),
        }

    async def _reap(self, process: asyncio.subprocess.Process) -> int:
        status = await process.wait()
        # Its process id is anybody's now.
        if self._watch is not None:
            self._watch.cancel()
        # Stubs notice the end of Triton after about two seconds; nothing is left for them to do.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return status

    async def _has_started(self) -> bool:
        async with asyncio.timeout(_START_SECONDS), TritonCalls(self.endpoint, self.header) as calls:
            return await calls.has_started(self._identity)

    async def _until_ready(self, ended: asyncio.Task[int], log: Path) -> None:
        ready = asyncio.create_task(self._has_started())
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Without effect on a probe that has its answer.
            ready.cancel()
            await asyncio.wait({ready})
        if not ready.cancelled() and ready.exception() is None and ready.result():
            return
        # Where another server answered, ours is about to find its port taken.
        await asyncio.wait({ended}, timeout=_EXIT_SECONDS)
        tail = _tail(log)
        if not ended.done():
            raise EmbeddedTritonError(f"Triton did not get ready; {log} ends with:\n{tail}")
        if re.search(r"Socket '[^']+' already in use", tail):
            raise _PortTakenError
        raise EmbeddedTritonError(
            f"Triton ended with status {ended.result()} while it started; {log} ends with:\n{tail}"
        )


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace").strip()
