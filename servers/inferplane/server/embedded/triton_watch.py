"""Watches over a running Triton: that it answers, and that each of its models has a process that can answer."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc.aio
import structlog

from inferplane.server.embedded.private_folders import TEMPORARY
from inferplane.server.embedded.triton_calls import TritonCalls

__all__ = ["ModelProcess", "TritonWatch"]

log = structlog.get_logger()

INTERVAL = 1.0
ANSWER_SECONDS = 3.0
MISSED = 3


@dataclass(frozen=True, slots=True)
class ModelProcess:
    """A stub, the process in which Triton runs a Python model, as it describes itself by `onnx_shim`.

    `folder` names the folder of Triton's that holds its model, `since` when it was loaded (monotonic, ns) or 0.
    """

    folder: str
    pid: int
    name: str
    version: str
    since: int

    @classmethod
    def read(cls, record: Path) -> Self | None:
        """The process that a record describes; None where it is not whole yet, or no record."""
        try:
            told = json.loads(record.read_text())
            return cls(record.name, int(told["pid"]), str(told["name"]), str(told["version"]), int(told["since"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def lives(self, triton: int) -> bool:
        """Whether the process goes on, and is neither a zombie, nor a stranger with its pid, nor another Triton's."""
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return len(words) > 5 and f"/{self.folder}/".encode() in words[1] and words[5] == str(triton).encode()

    def kill(self, triton: int) -> None:
        """End the process, and no later owner of its pid."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.lives(triton):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


class TritonWatch:
    """Watches one Triton, whose process id is `pid` and whose models leave their records in `records`.

    `hung` is called once if it leaves ServerLive unanswered three times in a row, 3 s each. A model whose process has
    died is unloaded: it would stay READY and fail for ever, and whoever wants it finds now that it is missing.
    A process that nothing is sent to any more, because its model was unloaded or replaced, is given `linger` seconds
    to end its calls, and is killed then.
    """

    def __init__(self, pid: int, records: Path, calls: TritonCalls, linger: float, hung: Callable[[], None]) -> None:
        self._pid = pid
        self._records = records
        self._calls = calls
        self._linger = linger
        self._hung = hung
        self._idle_since: dict[str, float] = {}

    async def run(self) -> None:
        """Watch until cancelled, or until Triton hangs."""
        missed = 0
        while missed < MISSED:
            await asyncio.sleep(INTERVAL)
            try:
                if not await self._calls.live(ANSWER_SECONDS):
                    missed += 1
                    continue
                missed = 0
                await self._look()
            except grpc.aio.AioRpcError as error:
                log.warning("triton_models_not_looked_at", code=error.code().name)
            except Exception:
                log.exception("triton_models_not_looked_at")
        log.error("triton_hung", pid=self._pid)
        self._hung()

    async def _look(self) -> None:
        found = (ModelProcess.read(record) for record in sorted(self._records.iterdir()))
        processes = [process for process in found if process is not None]
        newest = {process.name: process for process in sorted(processes, key=lambda p: p.since)}
        loading = {process.name for process in processes if not process.since and process.lives(self._pid)}
        idle = set()
        for process in processes:
            lives = process.lives(self._pid)
            serves = bool(process.since) and newest[process.name] is process and await self._ready(process)
            if lives and process.since and not serves:
                idle.add(process)
            elif serves and not lives and process.name not in loading:
                log.error("model_process_died", model=process.name, version=process.version)
                await self._calls.unload(process.name, ANSWER_SECONDS)
            elif not lives and not (TEMPORARY / process.folder).exists():
                # Gone as it should; a folder in the real /tmp would still have to be found after a kill.
                (self._records / process.folder).unlink(missing_ok=True)
        self._end(idle)

    async def _ready(self, process: ModelProcess) -> bool:
        return await self._calls.model_ready(process.name, process.version, ANSWER_SECONDS)

    def _end(self, idle: set[ModelProcess]) -> None:
        """Kill those that have been idle for too long."""
        now = time.monotonic()
        self._idle_since = {process.folder: self._idle_since.get(process.folder, now) for process in idle}
        for process in idle:
            if now - self._idle_since[process.folder] > self._linger:
                log.error("model_process_killed", model=process.name, version=process.version, pid=process.pid)
                process.kill(self._pid)
