"""Runs services under supervisors, and in `up` also the database and Triton that one machine starts by itself."""

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

from inferplane.server.embedded.postgres import EmbeddedPostgres
from inferplane.server.embedded.triton import EmbeddedTriton
from inferplane.server.files import write_private
from inferplane.server.log_files import LogFile
from inferplane.server.processes.parts import KeptPart
from inferplane.server.processes.ports import ReservedPort
from inferplane.server.processes.protocol import Job
from inferplane.server.processes.supervisor import Supervisor, WorkerStartError
from inferplane.server.settings import METRICS_BASE_PORT, TRITON_PORT, ServiceName, Settings, address

__all__ = ["Mesh", "stop_requested"]

log = structlog.get_logger()

ADMIN = "admin"
SESSIONS_OUTSIDE_POOL = 2
LINGER_BEYOND_DEADLINE = 10.0
MAX_LOG_SIZE = 16 << 20
LOG_INTERVAL = 1.0
LOG_PAUSE = 60.0
STOP_ORDER = (ServiceName.INFERENCE, ServiceName.ARTIFACT, ServiceName.REPORTING, ServiceName.AUTH)
"""Inference first: its last prediction records still find the reporting service."""


def stop_requested() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


@dataclass(slots=True)
class Mesh:
    """What runs on this machine. `settings` grows with what is started."""

    settings: Settings
    supervisors: dict[ServiceName, Supervisor] = field(default_factory=dict)
    postgres: EmbeddedPostgres | None = None
    triton: EmbeddedTriton | None = None
    parts: dict[str, KeptPart] = field(default_factory=dict)
    admin_password_file: Path | None = None
    log: LogFile | None = None

    def open_data_dir(self, stack: AsyncExitStack) -> None:
        """Make the data directory, and keep the services' logs there; until the stack is unwound logs stay bounded."""
        data_dir = self.settings.data_dir.resolve()
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = data_dir / "logs"
        folder.mkdir(exist_ok=True, mode=0o700)
        self.log = LogFile(folder / "services.log", MAX_LOG_SIZE)
        bounding = asyncio.create_task(self._bound_logs())

        async def end() -> None:
            bounding.cancel()
            await asyncio.gather(bounding, return_exceptions=True)

        stack.push_async_callback(end)

    async def start_database(self, stack: AsyncExitStack) -> None:
        """Start the embedded PostgreSQL unless there is a URL, migrate, and make keys and an administrator."""
        data_dir = self.settings.data_dir.resolve()
        if self.settings.database_url is None:
            connections = {"max_connections": str(self._most_connections())}
            self.postgres = EmbeddedPostgres(data_dir / "postgres", settings=connections)
            await self.postgres.start()
            stack.push_async_callback(self.postgres.stop)
            self._keep(stack, "postgres", self.postgres.wait, self.postgres.start)
            self._update(database_url=SecretStr(self.postgres.owner_url))
        self.admin_password_file = data_dir / "admin.password"
        await prepare(self.settings, await asyncio.to_thread(_password, self.admin_password_file))

    async def start_triton(self, stack: AsyncExitStack) -> None:
        """Start the embedded Triton unless there is an endpoint; it is started again if it ends."""
        if self.settings.triton_endpoint is not None:
            return
        # A model that was replaced still answers the calls that it has.
        linger = self.settings.unary_deadline + LINGER_BEYOND_DEADLINE
        triton = self.triton = EmbeddedTriton(self.settings.data_dir.resolve() / "triton", linger=linger)
        port = self.settings.beside(self.settings.triton_port, TRITON_PORT)
        await triton.start(port=port or None)
        stack.push_async_callback(triton.stop)
        bound = int(triton.endpoint.rpartition(":")[2])
        self._keep(stack, "triton", triton.wait, lambda: triton.start(port=bound))
        name, value = triton.header
        self._update(triton_endpoint=triton.endpoint, triton_header_name=name, triton_header_value=SecretStr(value))

    async def start_services(self, stack: AsyncExitStack, services: Iterable[ServiceName]) -> None:
        """Reserve all ports, then start all workers at once and wait until they are ready."""
        ports = {service: ReservedPort(self.settings.listen, self._port(service)) for service in services}
        for reserved in ports.values():
            stack.callback(reserved.close)
        endpoints = {service: address(self.settings.listen, reserved.port) for service, reserved in ports.items()}
        self._update(endpoints={**endpoints, **self.settings.endpoints})
        settings = self.settings.to_worker()
        for service, reserved in ports.items():
            jobs = [
                Job(service.value, settings, reserved.port, self._metrics_port(service, worker))
                for worker in range(self.settings.workers)
            ]
            self.supervisors[service] = Supervisor(jobs, self.settings.drain_grace, self.log)
        stack.push_async_callback(self.stop_services)
        await asyncio.gather(*(supervisor.start() for supervisor in self.supervisors.values()))

    async def until_serving(self, timeout: float) -> None:
        """Wait, in seconds, until every service's server is SERVING; WorkerStartError if that takes longer."""
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(*(supervisor.until_serving() for supervisor in self.supervisors.values()))
        except TimeoutError:
            raise WorkerStartError(self._what_does_not_serve(timeout)) from None

    def _what_does_not_serve(self, seconds: float) -> str:
        waiting = [
            service.value
            for service, supervisor in self.supervisors.items()
            if not all(worker.serving for worker in supervisor.workers)
        ]
        where = self.log.path if self.log else "the log above"
        triton = f"; does Triton at {self.settings.triton_endpoint} answer?" if waiting == ["inference"] else ""
        # None, if the last one begins to serve at this very moment.
        return (
            f"{', '.join(waiting) or 'the services'} did not serve within {seconds:.0f} s{triton} ({where} may say why)"
        )

    async def stop_services(self) -> None:
        """Drain and stop, in an order in which none misses another."""
        for service in STOP_ORDER:
            if service in self.supervisors:
                await self.supervisors[service].stop()

    def ready(self) -> dict[str, Any]:
        """What the ready file says."""
        workers = {
            f"{service}/{index}" if self.settings.workers > 1 else service.value: worker
            for service, supervisor in self.supervisors.items()
            for index, worker in enumerate(supervisor.workers)
        }
        pids = {name: worker.process.pid for name, worker in workers.items() if worker.process}
        metrics = {
            name: f"{self.settings.listen}:{worker.ready.metrics_port}"
            for name, worker in workers.items()
            if worker.ready
        }
        embedded = {"postgres": self.postgres, "triton": self.triton}
        return {
            "endpoints": {
                **{service.value: where for service, where in self.settings.endpoints.items()},
                "triton": self.settings.triton_endpoint,
                "metrics": metrics,
            },
            "admin": {"username": ADMIN, "password_file": str(self.admin_password_file)},
            "triton_header_file": str(self.settings.data_dir.resolve() / "triton" / "header") if self.triton else None,
            "restarts": {
                **{name: worker.restarts for name, worker in workers.items()},
                **{name: part.restarts for name, part in self.parts.items()},
            },
            "pids": {"up": os.getpid(), **pids, **{name: part.pid for name, part in embedded.items() if part}},
        }

    def _keep(
        self, stack: AsyncExitStack, name: str, wait: Callable[[], Awaitable[int]], start: Callable[[], Awaitable[None]]
    ) -> None:
        self.parts[name] = KeptPart(name, wait, start)
        self.parts[name].keep(stack)

    async def _bound_logs(self) -> None:
        while True:
            written = [part.log for part in (self, self.postgres, self.triton) if part and part.log]
            pause = LOG_INTERVAL
            for file in written:
                try:
                    await asyncio.to_thread(file.bound)
                except Exception:
                    # Such as a full disk, on which the log does not grow either.
                    log.exception("log_not_bounded")
                    pause = LOG_PAUSE
            await asyncio.sleep(pause)

    def _port(self, service: ServiceName) -> int:
        return self.settings.base_port and self.settings.base_port + list(ServiceName).index(service)

    def _metrics_port(self, service: ServiceName, worker: int) -> int:
        base = self.settings.beside(self.settings.metrics_base_port, METRICS_BASE_PORT)
        return base and base + list(ServiceName).index(service) * self.settings.workers + worker

    def _most_connections(self) -> int:
        """What all workers may open, pools and overflow, and some for people."""
        per_worker = 2 * self.settings.database_pool_size + SESSIONS_OUTSIDE_POOL
        return max(100, len(ServiceName) * self.settings.workers * per_worker + 20)

    def _update(self, **changes: object) -> None:
        self.settings = self.settings.model_copy(update=changes)


async def prepare(settings: Settings, admin_password: str) -> None:
    """Run `prepare.py` as a child; WorkerStartError if it fails, which it then has explained itself."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "inferplane.server.processes.prepare"),
        stdin=asyncio.subprocess.PIPE,
        # A Ctrl-C in the terminal is for `up`, which ends it.
        start_new_session=True,
    )
    given = {"settings": settings.to_worker(), "admin": ADMIN, "password": admin_password}
    try:
        await child.communicate(json.dumps(given).encode())
    except asyncio.CancelledError:
        child.kill()
        await child.wait()
        raise
    if child.returncode:
        raise WorkerStartError("the mesh was not started; the message above says why")


def _password(path: Path) -> str:
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24).encode() + b"\n")
    return path.read_text().strip()


def write_ready_file(path: Path, ready: dict[str, Any]) -> None:
    """Write the ready file, whole or not at all."""
    write_private(path.resolve(), json.dumps(ready, indent=2).encode() + b"\n")
