"""Triton Inference Server as a child of this process, from the `nvidia-pytriton` wheel."""

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from inferplane.server.embedded.process import dying_with_parent, lock_file, stop_process
from inferplane.server.files import write_private

__all__ = ["EmbeddedTriton", "EmbeddedTritonError"]

_HEADER_KEY = "inferplane"
_PROTOCOLS = "health,metadata,inference,shared-memory,model-config,model-repository,statistics,trace,logging"
_START_SECONDS = 60.0
_EXIT_SECONDS = 5
_PORT_ATTEMPTS = 5
_TRUE = b"\x08\x01"  # the only field of ServerLiveResponse and ServerReadyResponse
_LOG_TAIL_BYTES = 4096
_MODEL_FOLDER = re.compile(r"folder[A-Za-z0-9]{6}")
# Triton writes the models that it is sent below this path, whatever TMPDIR says.
_TRITON_TEMPORARY = Path("/tmp")  # noqa: S108 - Triton's choice, not ours
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux


class EmbeddedTritonError(RuntimeError):
    """Triton is not installed, cannot run on this machine, or ended while it started."""


class _PortTakenError(Exception):
    """Somebody bound the chosen port first."""


@dataclass(frozen=True, slots=True)
class _Installation:
    """Where the wheel keeps its parts, and what their libraries need."""

    binary: Path
    backend: Path
    stub: Path
    library_path: str


class EmbeddedTriton:
    """One Triton on the loopback interface, which answers only calls that carry a random header.

    It serves gRPC alone, on the CPU, with the Python backend as its only backend, and dies with the thread
    that started it. A `data_dir` has at most one running Triton.

    Known limits. Triton takes the header's value on its command line only, so every local user who may read
    `/proc/<pid>/cmdline` can learn it. It keeps the models that it is sent below `/tmp` (mode 0700), wherever
    `data_dir` is: they go when a model is unloaded and when Triton ends; after a kill they go at `stop` or at
    the next `start`, except for an empty folder `python_env_*`.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.resolve()
        self._run_dir = self._data_dir / "run"
        digest = hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()
        self._shm_prefix = f"inferplane_{digest[:16]}_"
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
        installation = _find_installation()
        try:
            self._prepare(installation)
            await self._launch_on_port(installation, port)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End Triton: politely, after 7 s by force; remove what it leaves. May be called at any time."""
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

    async def _launch_on_port(self, installation: _Installation, port: int | None) -> None:
        for _ in range(_PORT_ATTEMPTS if port is None else 1):
            self._port = _free_port() if port is None else port
            try:
                await self._launch(installation)
                return
            except _PortTakenError:
                if port is None:
                    # Whoever has that port has seen the header.
                    self._secret = ""
        raise EmbeddedTritonError(f"port {self._port} of 127.0.0.1 is taken; choose another one for Triton")

    def _prepare(self, installation: _Installation) -> None:
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock_file(self._data_dir / "lock")
        if self._lock is None:
            raise EmbeddedTritonError(f"another process runs a Triton in {self._data_dir}")
        self._clean()
        shutil.rmtree(self._run_dir, ignore_errors=True)
        backend = self._run_dir / "backends" / "python"
        for folder in (backend, self._run_dir / "models"):
            folder.mkdir(mode=0o700, parents=True)
        self._folders.mkdir(mode=0o700, exist_ok=True)
        for part in (
            *installation.backend.glob("*.so"),
            *installation.backend.glob("*.py"),
            installation.stub,
        ):
            (backend / part.name).symlink_to(part)
        log = self._data_dir / "server.log"
        with contextlib.suppress(FileNotFoundError):
            log.replace(log.with_name("server.log.1"))
        write_private(log, b"")

    @property
    def _folders(self) -> Path:
        # Outside the run folder, which every start makes anew.
        return self._data_dir / "folders"

    def _clean(self) -> None:
        """Remove shared memory and model folders that a killed Triton left behind."""
        for region in _SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
            region.unlink(missing_ok=True)
        for record in self._folders.glob("*"):
            folder = _TRITON_TEMPORARY / record.name
            # The record is written by code beside a model: never follow it out of Triton's own folders.
            if _MODEL_FOLDER.fullmatch(record.name) and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)
            record.unlink(missing_ok=True)

    async def _launch(self, installation: _Installation) -> None:
        if not self._secret:
            self._secret = secrets.token_hex(32)
        self._identity = f"inferplane-{secrets.token_hex(8)}"
        write_private(self._data_dir / "header", ": ".join(self.header).encode() + b"\n")
        log = self._data_dir / "server.log"
        with log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *dying_with_parent(signal.SIGKILL),
                *(str(installation.binary), *self._arguments()),
                cwd=self._run_dir,
                env=self._environment(installation),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A group of its own: Ctrl-C reaches the owner alone, and the stubs can be ended with it.
                start_new_session=True,
            )
        self._exit = asyncio.create_task(_reap(self._process))
        await self._until_ready(self._exit, log)

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

    def _environment(self, installation: _Installation) -> dict[str, str]:
        return {
            # The stub embeds Python and finds this environment's packages through `python3` on the path.
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), "/usr/bin", "/bin")),
            "LD_LIBRARY_PATH": installation.library_path,
            "LC_ALL": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "INFERPLANE_TRITON_FOLDERS": str(self._folders),
        }

    async def _until_ready(self, ended: asyncio.Task[int], log: Path) -> None:
        ready = asyncio.create_task(_probe(self.endpoint, self.header, self._identity))
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


async def _reap(process: asyncio.subprocess.Process) -> int:
    status = await process.wait()
    # Stubs notice the end of Triton after about two seconds; nothing is left for them to do.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return status


async def _probe(endpoint: str, header: tuple[str, str], identity: str) -> bool:
    """Whether the Triton of that identity is live and ready, asked as soon as somebody listens."""
    options = (
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 200),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    )
    metadata = (header,)
    async with asyncio.timeout(_START_SECONDS), grpc.aio.insecure_channel(endpoint, options) as channel:

        async def ask(method: str) -> bytes:
            call: Any = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            answer: bytes = await call(b"", metadata=metadata, wait_for_ready=True)
            return answer

        # In bytes: Triton's message classes would bring numpy into a process that needs it for nothing else.
        live_and_ready = [await ask("ServerLive"), await ask("ServerReady")] == [_TRUE, _TRUE]
        return live_and_ready and identity.encode() in await ask("ServerMetadata")


def _find_installation() -> _Installation:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EmbeddedTritonError(
            "the embedded Triton runs on Linux x86_64 only; name a Triton of your own in the settings"
        )
    libc, version = platform.libc_ver()
    if libc == "glibc" and tuple(map(int, version.split(".")[:2])) < (2, 35):
        raise EmbeddedTritonError(f"the embedded Triton needs glibc 2.35 or newer, this machine has {version}")
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedTritonError(
            "the embedded Triton is not installed: pip install 'inferplane[server,embedded]', "
            "or name a Triton of your own in the settings"
        )
    package = Path(spec.submodule_search_locations[0])
    root = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    installation = _Installation(
        binary=root / "bin" / "tritonserver",
        backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / python / "triton_python_backend_stub",
        library_path=os.pathsep.join((str(package.parent / "nvidia_pytriton.libs"), *_python_libraries())),
    )
    for part in (installation.binary, installation.backend, installation.stub):
        if not part.exists():
            raise EmbeddedTritonError(f"the wheel nvidia-pytriton lacks {part}; reinstall inferplane[embedded]")
    return installation


def _python_libraries() -> tuple[str, ...]:
    """Folders of the running Python's shared library, to which Triton's stub is linked."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    own = (sysconfig.get_config_var("LIBDIR") or "", str(Path(sys.base_prefix) / "lib"))
    found = tuple(dict.fromkeys(folder for folder in own if folder and Path(folder, name).exists()))
    system = (
        "/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib",
    )
    if not found and not any(Path(folder, name).exists() for folder in system):
        raise EmbeddedTritonError(
            f"the embedded Triton needs {name}, which this Python does not have: "
            "use a Python that was built with --enable-shared, or install the system's libpython"
        )
    return found


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace").strip()
