"""Keeps worker processes alive: starts them by spawn, replaces the dead and the hung, stops them gracefully."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import structlog

from inferplane.server.processes.protocol import Failed, Heartbeat, Job, Ready

__all__ = ["Supervisor", "Worker", "WorkerStartError"]

log = structlog.get_logger()

START_TIMEOUT = 30.0
HUNG_AFTER = 4.0
MAX_BACKOFF = 5.0
KILL_AFTER = 5.0
EXIT_TIMEOUT = 3.0


class WorkerStartError(Exception):
    """A worker did not become ready; its log says why."""


def _appended(path: Path) -> BinaryIO:
    # 0600: logs name callers and models.
    return open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")  # noqa: PTH123


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
    """Runs workers until stopped. Their logs go to `log_file`, or with None to standard error."""

    def __init__(self, jobs: list[Job], drain_grace: float, log_file: Path | None = None) -> None:
        self.workers = [Worker(job) for job in jobs]
        self._log_file = log_file
        self._drain_grace = drain_grace
        self._stopping = False
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
        self._stopping = True
        for worker in self.workers:
            if worker.process is not None and worker.process.returncode is None:
                worker.process.terminate()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_grace + KILL_AFTER)
        for worker in self.workers:
            if worker.process is not None and worker.process.returncode is None:
                log.error("worker_killed", service=worker.job.service, pid=worker.process.pid)
                worker.process.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, worker: Worker) -> None:
        backoff = 0.1
        while not self._stopping:
            worker.restarts += 1
            began = time.monotonic()
            await self._run_once(worker)
            worker.ready, worker.serving = None, False
            async with self._changed:
                self._changed.notify_all()
            if self._stopping:
                return
            code = worker.process.returncode if worker.process else None
            log.error("worker_ended", service=worker.job.service, exit_code=code)
            backoff = 0.1 if time.monotonic() - began > 10 else min(backoff * 2, MAX_BACKOFF)
            await asyncio.sleep(backoff)

    def _where(self) -> str:
        return str(self._log_file) if self._log_file else "the log above"

    async def _run_once(self, worker: Worker) -> None:
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as stack:
            log_file = stack.enter_context(_appended(self._log_file)) if self._log_file else None
            worker.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "inferplane.server.processes.worker",
                "--control-fd",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stderr=log_file,
                # Ctrl-C in a terminal is for us, who stop the services in an order in which none misses another.
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(json.dumps(asdict(worker.job)).encode() + b"\n")
                await writer.drain()
                if await self._follow(worker, reader):
                    # It has hung up and is on its way out; what it has to say is still to be written.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(worker.process.wait(), EXIT_TIMEOUT)
            if not self._stopping and worker.process.returncode is None:
                worker.process.kill()
            await worker.process.wait()
        finally:
            writer.close()

    async def _follow(self, worker: Worker, reader: asyncio.StreamReader) -> bool:
        """Listen to a worker until it hangs up; False where it stopped saying anything."""
        limit = START_TIMEOUT
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), limit)
            except TimeoutError:
                log.warning("worker_hung", service=worker.job.service, pid=worker.process and worker.process.pid)
                if self._stopping:
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
