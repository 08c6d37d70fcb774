"""`inferplane serve NAME`: one service, for machines where others are elsewhere."""

import asyncio
from contextlib import AsyncExitStack
from typing import Annotated, Any

import typer
import uvloop

from inferplane.server.commands.failures import reported
from inferplane.server.commands.terminal import say
from inferplane.server.logging import configure_logging
from inferplane.server.processes.installation import Mesh, stop_requested
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.settings_sources import load_settings

__all__ = ["serve"]


def serve(
    name: Annotated[ServiceName, typer.Argument(help="The service to run.")],
    listen: Annotated[str | None, typer.Option(help="Address to bind. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port. [default: the service's own]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Worker processes that share the port.")] = None,
) -> None:
    """Run one service until Ctrl-C or SIGTERM.

    Reads INFERPLANE_DATABASE_URL, INFERPLANE_ENDPOINTS__<SERVICE> of the others, INFERPLANE_MASTER_KEY_FILE and
    INFERPLANE_WORKLOAD_KEYS_DIR. The database must have been migrated by `inferplane db migrate`.
    """
    given = {"listen": listen, "workers": workers}
    overrides: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    with reported():
        settings = load_settings(**overrides)
        if port is not None:
            # The ports of a mesh follow one another; here only one of them is used.
            settings = settings.model_copy(update={"base_port": port and port - list(ServiceName).index(name)})
        uvloop.run(run(name, settings))


async def run(name: ServiceName, settings: Settings) -> None:
    """Start the workers, wait for a signal, stop them."""
    configure_logging(settings.log_level, service="serve")
    stop = stop_requested()
    mesh = Mesh(settings)
    async with AsyncExitStack() as stack:
        await mesh.start_services(stack, [name])
        say(f"{name} serves on {mesh.settings.endpoints[name]}")
        await stop.wait()
    await asyncio.sleep(0)
