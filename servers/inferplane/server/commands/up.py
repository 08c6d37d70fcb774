"""`inferplane up`: the whole mesh on this machine, by one command."""

import asyncio
import contextlib
import shlex
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import uvloop
from rich.table import Table

from inferplane.server.commands.failures import reported
from inferplane.server.commands.terminal import say
from inferplane.server.logging import configure_logging
from inferplane.server.processes.installation import Mesh, stop_requested, write_ready_file
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.settings_sources import load_settings

__all__ = ["up"]

log = structlog.get_logger()

READY_TIMEOUT = 60.0
READY_FILE_INTERVAL = 0.5


def up(
    data_dir: Annotated[Path | None, typer.Option(help="Folder of all state. [default: .inferplane]")] = None,
    base_port: Annotated[
        int | None,
        typer.Option(min=0, max=65000, help="Port of auth; others follow. 0: any free. [default: 50051]"),
    ] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Write endpoints and pids there when ready.")] = None,
    listen: Annotated[str | None, typer.Option(help="Address to bind. [default: 127.0.0.1]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Worker processes per service.")] = None,
) -> None:
    """Start PostgreSQL, Triton and the four services, and serve until Ctrl-C.

    PostgreSQL and Triton are started from their wheels unless INFERPLANE_DATABASE_URL and
    INFERPLANE_TRITON_ENDPOINT name others. All state lies in the data directory. The first start makes an
    administrator with a random password, in a file that only you can read.
    """
    given = {"data_dir": data_dir, "base_port": base_port, "listen": listen, "workers": workers}
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with reported():
        uvloop.run(run(load_settings(**overrides), ready_file))


async def run(settings: Settings, ready_file: Path | None) -> None:
    """Start everything, say so, wait for a signal, stop everything."""
    configure_logging(settings.log_level, service="up")
    stop = stop_requested()
    began = time.monotonic()
    mesh = Mesh(settings)
    async with AsyncExitStack() as stack:
        mesh.open_data_dir(stack)
        starting = asyncio.create_task(start(mesh, stack))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        await starting
        say(endpoint_table(mesh, time.monotonic() - began))
        say(what_next(mesh, ready_file if settings.base_port == 0 else None))
        if ready_file is not None:
            stack.callback(_remove, ready_file)
        await keep_ready_file(mesh, ready_file, stopped)
        say("Stopping …")


async def keep_ready_file(mesh: Mesh, ready_file: Path | None, stopped: "asyncio.Task[bool]") -> None:
    """Keep the ready file true until `stopped`: a part that was started again has another pid.

    A full disk or a process without descriptors is no reason to stop serving: it is said once, and tried again.
    """
    written: dict[str, Any] = {}
    said = False
    while not stopped.done():
        if ready_file is not None and (ready := mesh.ready()) != written:
            try:
                await asyncio.to_thread(write_ready_file, ready_file, ready)
            except Exception:
                if not said:
                    log.exception("ready_file_not_written", path=str(ready_file))
                said = True
            else:
                written, said = ready, False
        await asyncio.wait({stopped}, timeout=READY_FILE_INTERVAL)


def _remove(ready_file: Path) -> None:
    with contextlib.suppress(OSError):
        ready_file.unlink(missing_ok=True)


async def start(mesh: Mesh, stack: AsyncExitStack) -> None:
    """Database and Triton side by side, then the services."""
    await asyncio.gather(mesh.start_database(stack), mesh.start_triton(stack))
    await mesh.start_services(stack, list(ServiceName))
    await mesh.until_serving(READY_TIMEOUT)


def endpoint_table(mesh: Mesh, seconds: float) -> Table:
    """What listens where."""
    ready = mesh.ready()
    table = Table(title=f"Inferplane is ready after {seconds:.1f} s", title_justify="left")
    table.add_column("part")
    table.add_column("endpoint")
    table.add_column("metrics")
    table.add_column("pid", justify="right")
    for service in ServiceName:
        names = [name for name in ready["pids"] if name == service.value or name.startswith(f"{service}/")]
        pids = " ".join(str(ready["pids"][name]) for name in names)
        metrics = " ".join(ready["endpoints"]["metrics"].get(name, "") for name in names)
        table.add_row(service.value, ready["endpoints"][service.value], metrics, pids)
    table.add_row("triton", ready["endpoints"]["triton"], "", str(ready["pids"].get("triton", "")))
    database = "socket in the data directory" if mesh.postgres else "INFERPLANE_DATABASE_URL"
    table.add_row("postgres", database, "", str(ready["pids"].get("postgres", "")))
    return table


def what_next(mesh: Mesh, ready_file: Path | None = None) -> str:
    """What to do now that it is ready. With `ready_file` the mesh is named by it: free ports do not follow auth's."""
    ready = mesh.ready()
    admin = ready["admin"]
    option, value = ("--mesh", ready["endpoints"]["auth"]) if ready_file is None else ("--ready-file", str(ready_file))
    return (
        f"log in:  inferplane login {option} {shlex.quote(value)} --username {admin['username']}"
        f" --password-file {shlex.quote(admin['password_file'])}\n"
        f"logs:    {mesh.log.path if mesh.log else ''}\nCtrl-C stops everything."
    )
