"""Loads models into Triton, each by a process of its own, and unloads them.

RepositoryModelLoad is one message as large as the model. A worker that took part in it would answer nobody meanwhile,
so all that a worker holds of a model is its description.
"""

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc
import structlog
from tritonclient.grpc import service_pb2

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.inference.formats.load_request import LOAD_METHOD
from inferplane.server.inference.formats.onnx import load_head, probe_head
from inferplane.server.inference.reconcile.load_job import LoadJob, LoadOutcome
from inferplane.server.inference.triton_link import control_problem, said
from inferplane.server.names import VERSION
from inferplane.server.rpc.errors import CATALOG

if TYPE_CHECKING:
    from inferplane.server.inference.deployments import VersionInfo
    from inferplane.server.inference.triton_link import TritonLink

__all__ = ["AwayError", "LoadRefusedError", "ModelLoader", "NotControlledError"]

log = structlog.get_logger()

LOAD_TIMEOUT = 300.0
"""Seconds that Triton may take for a load."""
UNLOAD_TIMEOUT = 330.0
"""Triton unloads a model only after a load of it has ended."""
SLOWEST_READ = 4 << 20
"""Bytes a second at which a model must come from the artifact service, on average."""
PROBE_TIMEOUT = 10.0

Credentials = Callable[[], list[tuple[str, str]]]

# Triton 2.51 says the first, older ones the second.
_NO_BACKEND = re.compile(
    r"unable to find backend library for backend 'onnxruntime'|unable to find 'libtriton_onnxruntime\.so'"
)
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")


class LoadRefusedError(Exception):
    """The model cannot be loaded as it is; the text says to people why."""


class NotControlledError(LoadRefusedError):
    """Triton takes no models at all, in the mode that it was started in."""


class AwayError(Exception):
    """Triton or the artifact service is away, which says nothing of the model; the text names it."""


class ModelLoader:
    """Loads ONNX models into one Triton, by its native backend if it has one, else by the shim.

    `artifact` is the artifact service's address, and `credentials` makes metadata for calls to it.
    """

    def __init__(self, link: "TritonLink", artifact: str, credentials: Credentials) -> None:
        self._link = link
        self._artifact = artifact
        self._credentials = credentials
        self._native: bool | None = None

    async def load(self, name: str, version: "VersionInfo") -> None:
        """Load a version under `name` in place of any other; returns when it is ready.

        If that fails, Triton goes on with the version it had. Raises LoadRefusedError or AwayError. When it is
        cancelled the process is killed; Triton still ends a load that it has received in full.
        """
        try:
            native = await self._has_native_backend(name)
            head = load_head(
                name, version.version, version.known_signature(), version.size, native=native, digest=version.digest
            )
            outcome = await self._run(self._job(version, head))
            _raise_for(outcome)
        except (LoadRefusedError, AwayError):
            # Another kind of Triton may have taken its place, so it is asked again before the next load.
            self._native = None
            raise

    async def unload(self, name: str) -> None:
        """Ask Triton to stop serving a model; one that is not loaded is no error.

        Returns before calls in flight have ended. Raises LoadRefusedError or AwayError.
        """
        request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
        try:
            await self._link.stub.RepositoryModelUnload(request, metadata=self._link.metadata, timeout=UNLOAD_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            _raise_for(LoadOutcome(triton=error.code().name, detail=error.details() or ""))

    async def _has_native_backend(self, name: str) -> bool:
        if self._native is None:
            call = self._link.raw_unary(LOAD_METHOD.rpartition("/")[2])
            try:
                await call(probe_head(name), metadata=self._link.metadata, timeout=PROBE_TIMEOUT)
                self._native = True
            except grpc.aio.AioRpcError as error:
                details = error.details() or ""
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    _raise_for(LoadOutcome(triton=error.code().name, detail=details))
                self._native = _NO_BACKEND.search(details) is None
        return self._native

    def _job(self, version: "VersionInfo", head: bytes) -> LoadJob:
        return LoadJob(
            artifact=self._artifact,
            model_version=VERSION.format(version.model, version.version),
            digest=version.digest,
            size=version.size,
            triton=self._link.endpoint,
            triton_metadata=self._link.metadata,
            head=head,
            timeout=LOAD_TIMEOUT,
        )

    async def _run(self, job: LoadJob) -> LoadOutcome:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "inferplane.server.inference.reconcile.load_child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Everything else stays here: our environment holds secrets.
            env={name: os.environ[name] for name in _INHERITED if name in os.environ},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(LOAD_TIMEOUT + job.size / SLOWEST_READ + PROBE_TIMEOUT):
                return await self._converse(process, job)
        except TimeoutError:
            raise AwayError("the artifact service gives the model's bytes too slowly") from None
        finally:
            await _end(process)

    async def _converse(self, process: asyncio.subprocess.Process, job: LoadJob) -> LoadOutcome:
        to_child, from_child = process.stdin, process.stdout
        if to_child is None or from_child is None:
            raise RuntimeError("the pipes were asked for")
        with contextlib.suppress(ConnectionError):
            to_child.write(job.to_line())
            while (line := await from_child.readline()) == b"credentials\n":
                to_child.write(json.dumps(self._credentials()).encode() + b"\n")
            if line:
                return LoadOutcome(**json.loads(line))
        status = await process.wait()
        log.error("load_process_ended", exit_code=status, model_version=job.model_version)
        raise LoadRefusedError(f"the process that loads it ended with status {status}: out of memory?")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    # Shielded: whoever is cancelled while it waits here must still leave no zombie.
    await asyncio.shield(asyncio.ensure_future(process.wait()))


def _raise_for(outcome: LoadOutcome) -> None:
    if outcome.loaded:
        return
    if outcome.artifact:
        reason = ErrorReason.Value(f"ERROR_REASON_{outcome.artifact}")
        if reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE:
            raise AwayError("the artifact service does not answer")
        raise LoadRefusedError(f"the model's bytes could not be read: {CATALOG[reason][1]}")
    if outcome.triton == "DEADLINE_EXCEEDED":
        raise LoadRefusedError(f"Triton did not load it within {LOAD_TIMEOUT:g} s")
    if problem := control_problem(outcome.detail):
        raise NotControlledError(problem)
    if outcome.triton == "UNAVAILABLE":
        raise AwayError("Triton went away during the load")
    raise LoadRefusedError(f"Triton could not load it: {said(outcome.detail)}")
