"""Keeps worker processes alive: starts them by spawn, replaces the dead and the hung, stops them gracefully."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import structlog

from inferplane.server.backoff import Backoff
from inferplane.server.log_files import LogFile
from inferplane.server.processes.grpc_environment import GRPC_ENVIRONMENT
from inferplane.server.processes.protocol import Failed, Heartbeat, Job, Ready

__all__ = ["Supervisor", "Worker", "WorkerStartError"]

log = structlog.get_logger()

START_TIMEOUT = 30.0
HUNG_AFTER = 3.0
LAST_LOOK = 1.0
"""Seconds without a word from a worker before it is taken for hung: HUNG_AFTER, and then LAST_LOOK."""
FIRST_PAUSE = 0.2
MOST_PAUSE = 5.0
KILL_AFTER = 5.0
EXIT_TIMEOUT = 3.0


class WorkerStartError(Exception):
    """A worker did not become ready; its log says why."""


@dataclass(slots=True)
class Worker:
    """A worker as the supervisor sees it. `ready` is None while it starts; `serving` is its last heartbeat's."""

    job: Job
    process: asyncio.subprocess.Process | None = None
    ready: Ready | None = None
    serving: bool = False
    failure: str = ""
    restarts: int = -1


class Supervisor:
    """Runs workers until stopped. Their logs go to `log`, or with None to standard error."""

    def __init__(self, jobs: list[Job], drain_grace: float, log: LogFile | None = None) -> None:
        self.workers = [Worker(job) for job in jobs]
        self._log = log
        self._drain_grace = drain_grace
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        """Start all workers and wait until each is ready; WorkerStartError if one fails to."""
        self._tasks = [asyncio.create_task(self._keep(worker)) for worker in self.workers]
        try:
            async with asyncio.timeout(START_TIMEOUT), self._changed:
                await self._changed.wait_for(
                    lambda: all(w.ready for w in self.workers) or any(w.restarts > 0 for w in self.workers)
                )
        except TimeoutError:
            pass
        failed = [worker for worker in self.workers if worker.ready is None]
        if failed:
            await self.stop()
            service, failure = failed[0].job.service, failed[0].failure or "see the log"
            raise WorkerStartError(f"{service} did not start: {failure} ({self._where()} says more)")

    async def until_serving(self) -> None:
        """Wait until every worker's server is SERVING."""
        async with self._changed:
            await self._changed.wait_for(lambda: all(worker.serving for worker in self.workers))

    async def stop(self) -> None:
        """Ask all workers to drain, wait for them, and kill those that do not end."""
        self._stop.set()
        for worker in self.workers:
            _signal(worker.process, signal.SIGTERM)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_grace + KILL_AFTER)
        for worker in self.workers:
            if _signal(worker.process, signal.SIGKILL):
                log.error("worker_killed", service=worker.job.service, pid=worker.process and worker.process.pid)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, worker: Worker) -> None:
        """Run a worker again and again, whatever becomes of it, until stopped."""
        backoff = Backoff(FIRST_PAUSE, MOST_PAUSE)
        while not self._stop.is_set():
            worker.restarts += 1
            backoff.begin()
            try:
                await self._run_once(worker)
            except Exception as error:
                # Such as no descriptors or no memory for another process: that passes.
                worker.failure = str(error) or type(error).__name__
                log.exception("worker_not_started", service=worker.job.service)
            worker.ready, worker.serving = None, False
            async with self._changed:
                self._changed.notify_all()
            if self._stop.is_set():
                return
            if worker.process is not None:
                log.error("worker_ended", service=worker.job.service, exit_code=worker.process.returncode)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.pause()):
                    await self._stop.wait()

    def _where(self) -> str:
        return str(self._log.path) if self._log else "the log above"

    async def _run_once(self, worker: Worker) -> None:
        worker.process = None
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = worker.process = await self._spawn(theirs)
            if self._stop.is_set():
                # It was not there yet when all were told.
                _signal(process, signal.SIGTERM)
            try:
                await self._converse(worker, process, ours)
            finally:
                if not self._stop.is_set():
                    _signal(process, signal.SIGKILL)
                await process.wait()
        finally:
            # The transport has closed it, if there was one.
            ours.close()

    async def _spawn(self, control: socket.socket) -> asyncio.subprocess.Process:
        with ExitStack() as stack:
            log_file = stack.enter_context(os.fdopen(self._log.open(), "ab")) if self._log else None
            return await asyncio.create_subprocess_exec(
                sys.executable,
                # Not from the folder in which somebody started us: others may write there.
                "-P",
                "-m",
                "inferplane.server.processes.worker",
                "--control-fd",
                str(control.fileno()),
                env={**GRPC_ENVIRONMENT, **os.environ},
                pass_fds=[control.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stderr=log_file,
                # Ctrl-C in a terminal is for us, who stop the services in an order in which none misses another.
                start_new_session=True,
            )

    async def _converse(self, worker: Worker, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=control)
        try:
            with contextlib.suppress(ConnectionError):
                job = replace(worker.job, restarts=worker.restarts)
                writer.write(json.dumps(asdict(job)).encode() + b"\n")
                await writer.drain()
                if await self._follow(worker, reader):
                    # It has hung up and is on its way out; what it has to say is still to be written.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(EXIT_TIMEOUT):
                            await process.wait()
        finally:
            writer.close()

    async def _follow(self, worker: Worker, reader: asyncio.StreamReader) -> bool:
        """Listen to a worker until it hangs up; False where it stopped saying anything."""
        limit = START_TIMEOUT
        while True:
            try:
                line = await _next_line(reader, limit)
            except TimeoutError:
                log.warning("worker_hung", service=worker.job.service, pid=worker.process and worker.process.pid)
                if self._stop.is_set():
                    continue
                return False
            if not line:
                return True
            message = json.loads(line)
            if "reason" in message:
                worker.failure = Failed(**message).reason
            elif worker.ready is None:
                worker.ready = Ready(**message)
                limit = HUNG_AFTER
            else:
                worker.serving = Heartbeat(**message).serving
            async with self._changed:
                self._changed.notify_all()


async def _next_line(reader: asyncio.StreamReader, limit: float) -> bytes:
    """The next line; TimeoutError where none comes within `limit` seconds of our own attention.

    If this process itself was stopped or starved, what the worker said meanwhile is there and only has to be read.
    """
    try:
        async with asyncio.timeout(limit):
            return await reader.readline()
    except TimeoutError:
        async with asyncio.timeout(LAST_LOOK):
            return await reader.readline()


def _signal(process: asyncio.subprocess.Process | None, number: signal.Signals) -> bool:
    """Send a signal to a process that is still there; whether it was."""
    if process is None or process.returncode is not None:
        return False
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
    return True
