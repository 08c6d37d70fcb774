"""One worker process: `python -m inferplane.server.processes.worker --control-fd N`.

The control socket carries, as JSON lines, the job from the supervisor and, back, one `ready` and then heartbeats
from the event loop. Its end means that the supervisor is gone, and the worker stops.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict

import structlog
import uvloop

from inferplane.server.bootstrap import run_service
from inferplane.server.logging import configure_logging
from inferplane.server.processes.metrics_endpoint import metrics_endpoint
from inferplane.server.processes.process_metrics import ProcessMetrics
from inferplane.server.processes.protocol import HEARTBEAT_INTERVAL, Failed, Heartbeat, Job, Ready
from inferplane.server.settings import ServiceName, Settings, address
from inferplane.server.telemetry import configure_tracing

log = structlog.get_logger()

EXIT_GRACE = 10.0
"""Seconds beyond `drain_grace` that a stop may take."""


async def work(job: Job, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve until told to stop by SIGTERM, SIGINT or the supervisor's end."""
    settings = Settings.model_validate_json(job.settings)
    service = ServiceName(job.service)
    output = configure_logging(settings.log_level, service=service.value)
    configure_tracing(service.value)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    addresses = (address(settings.listen, job.port), address(settings.listen, 0))
    async with run_service(service, settings, *addresses) as running:
        health = running.server.health
        running.registry.register(ProcessMetrics(job.restarts, output))
        with metrics_endpoint(
            settings.listen, job.metrics_port, running.registry, lambda: bool(health.serving(""))
        ) as metrics_port:
            # To look through what stays for good stops the loop for 100 ms, each time that much else has come.
            gc.freeze()
            await _send(writer, asdict(Ready(running.ports[1], metrics_port)))
            beats = asyncio.create_task(_beat(writer, lambda: bool(health.serving(""))))
            watch = asyncio.create_task(_watch(reader, stop))
            await stop.wait()
            watch.cancel()
            _end_in_any_case(settings.drain_grace + EXIT_GRACE)
            # Goes on while the server drains, or the supervisor would take it for hung.
            health.drain()
        await asyncio.sleep(0)
    beats.cancel()


async def _send(writer: asyncio.StreamWriter, message: object) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()


async def _beat(writer: asyncio.StreamWriter, serving: Callable[[], bool]) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            await _send(writer, asdict(Heartbeat(serving())))
            await asyncio.sleep(HEARTBEAT_INTERVAL)


async def _watch(reader: asyncio.StreamReader, stop: asyncio.Event) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read(1)
    stop.set()


def _end_in_any_case(seconds: float) -> None:
    """Without a supervisor nobody would end a worker that hangs while it stops."""
    guard = threading.Timer(seconds, os._exit, (1,))
    guard.daemon = True
    guard.start()


def _allow_descriptors() -> None:
    """As many as the system lets us have: each connection is one, and the usual limit is below `max_connections`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def main(control_fd: int) -> None:
    """Receive the job and work."""
    _allow_descriptors()
    control = socket.socket(fileno=control_fd)
    os.set_inheritable(control_fd, False)
    reader, writer = await asyncio.open_unix_connection(sock=control, limit=1 << 20)
    job = Job(**json.loads(await reader.readline()))
    try:
        await work(job, reader, writer)
    except Exception as error:
        log.exception("service_failed", service=job.service)
        with contextlib.suppress(ConnectionError):
            await _send(writer, asdict(Failed(f"{error}" or type(error).__name__)))
        raise SystemExit(1) from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A worker process of a service; started by its supervisor only.")
    parser.add_argument("--control-fd", type=int, required=True)
    uvloop.run(main(parser.parse_args().control_fd))
    sys.exit(0)
