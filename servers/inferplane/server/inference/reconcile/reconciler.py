"""Brings Triton to what the tables say: effects outside the database follow the commit.

All inference workers run one; an advisory lock lets one at a time act. It keeps no memory of its own: Triton is
asked which bytes it serves, so a restart of either side is found and mended.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import UUID

import asyncpg
import grpc
import structlog

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.deployments import Deployment, State, VersionInfo
from inferplane.server.inference.formats.onnx import DIGEST_PARAMETER
from inferplane.server.inference.repository import DeploymentReader, DeploymentRepository
from inferplane.server.rpc.errors import CATALOG
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory
from inferplane.server.tensors import Signature

__all__ = ["ModelLoader", "Reconciler"]

log = structlog.get_logger()

LEADER_LOCK = 0x7265636F6E
INTERVAL = 1.0
RETRY_FAILED = 15.0
LOAD_TIMEOUT = 300.0
ACTOR = Actor("workloads/inference")


class ModelLoader(Protocol):
    """What loads into Triton."""

    async def load(
        self, name: str, version: int, signature: Signature, model: bytes, *, digest: str, timeout: float
    ) -> None: ...
    async def unload(self, name: str, *, timeout: float | None = None) -> None: ...


class TritonView(Protocol):
    """What Triton can be asked."""

    async def live(self) -> bool: ...
    async def model_ready(self, name: str, version: int) -> bool: ...
    async def model_parameter(self, name: str, key: str) -> str | None: ...


class BytesSource(Protocol):
    """Where verified bytes come from."""

    async def read(self, version: VersionInfo) -> bytes: ...


class _AwayError(Exception):
    """Triton or the artifact service is away, so nothing can be said of the deployment."""


class Reconciler:
    """`connect` makes the connection that holds the lock; `wake` makes it look at once."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        database: Database,
        units_of_work: UnitOfWorkFactory,
        triton: TritonView,
        loader: ModelLoader,
        source: BytesSource,
    ) -> None:
        self._connect = connect
        self._database = database
        self._units_of_work = units_of_work
        self._triton = triton
        self._loader = loader
        self._source = source
        self._wake = asyncio.Event()
        self._failed_at: dict[UUID, float] = {}

    def wake(self) -> None:
        """Look at the tables now."""
        self._wake.set()

    async def run(self) -> None:
        """Follow the tables until cancelled, whenever this process holds the lock."""
        while True:
            try:
                await self._lead()
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, InferplaneError) as error:
                log.warning("reconciler_paused", error=type(error).__name__)
            await asyncio.sleep(INTERVAL)

    async def _lead(self) -> None:
        connection = await self._connect()
        try:
            # Polled: waiting inside PostgreSQL would outlast the connection's command timeout.
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LEADER_LOCK):  # noqa: ASYNC110
                await asyncio.sleep(INTERVAL)
            while not connection.is_closed():
                self._wake.clear()
                await connection.fetchval("SELECT 1")
                if await self._triton.live():
                    await self._reconcile()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), INTERVAL)
        finally:
            connection.terminate()

    async def _reconcile(self) -> None:
        async with self._database.transaction() as connection:
            deployments = await DeploymentReader(connection).all_with_deleted()
        served = {deployment.name for deployment in deployments if not deployment.deleted}
        for deployment in deployments:
            if deployment.deleted:
                await self._remove(deployment, unload=deployment.name not in served)
            else:
                await self._ensure(deployment)

    async def _remove(self, deployment: Deployment, *, unload: bool) -> None:
        if unload:
            try:
                await self._loader.unload(deployment.name, timeout=LOAD_TIMEOUT)
            except grpc.aio.AioRpcError as error:
                log.warning("unload_failed", deployment=deployment.name, code=error.code().name)
                return
        async with self._database.transaction() as connection:
            await DeploymentReader(connection).delete(deployment.id)
            await connection.commit()

    async def _ensure(self, deployment: Deployment) -> None:
        try:
            await self._bring_up(deployment)
        except _AwayError as error:
            # Not the deployment's fault: its state stays, and the next pass tries again.
            log.warning("deployment_waits", deployment=deployment.name, reason=str(error))

    async def _bring_up(self, deployment: Deployment) -> None:
        if await self._serves(deployment):
            if deployment.state != "READY":
                await self._set_state(deployment, "READY", "")
            return
        if time.monotonic() - self._failed_at.get(deployment.id, float("-inf")) < RETRY_FAILED:
            return
        problem = await self._load(deployment)
        if problem is None:
            self._failed_at.pop(deployment.id, None)
            await self._set_state(deployment, "READY", "")
        else:
            self._failed_at[deployment.id] = time.monotonic()
            await self._set_state(deployment, "FAILED", problem)

    async def _serves(self, deployment: Deployment) -> bool:
        version = deployment.version
        try:
            digest = await self._triton.model_parameter(deployment.name, DIGEST_PARAMETER)
        except grpc.aio.AioRpcError as error:
            raise _AwayError("Triton does not answer") from error
        return digest == version.digest and await self._triton.model_ready(deployment.name, version.version)

    async def _load(self, deployment: Deployment) -> str | None:
        """Load; None, or for people why it failed."""
        version = deployment.version
        log.info("deployment_loading", deployment=deployment.name, digest=version.digest)
        try:
            content = await self._source.read(version)
            await self._loader.load(
                deployment.name,
                version.version,
                version.signature,
                content,
                digest=version.digest,
                timeout=LOAD_TIMEOUT,
            )
        except InferplaneError as error:
            if error.reason == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE:
                raise _AwayError("the artifact service does not answer") from error
            log.warning("deployment_bytes_unreadable", deployment=deployment.name, error=str(error))
            return f"the model's bytes could not be read: {CATALOG[error.reason][1]}"
        except grpc.aio.AioRpcError as error:
            log.warning("deployment_load_failed", deployment=deployment.name, details=(error.details() or "")[:500])
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise _AwayError("Triton went away during the load") from error
            return "Triton could not load the model; its log says why"
        return None

    async def _set_state(self, deployment: Deployment, state: State, message: str) -> None:
        if (state, message) == (deployment.state, deployment.state_message):
            return
        async with self._units_of_work(ACTOR) as unit:
            store = DeploymentRepository(unit)
            if await store.set_state(deployment.id, state, message):
                action = f"deployment.{state.lower()}"
                store.record(action, f"deployments/{deployment.name}", digest=deployment.version.digest)
                await unit.commit()
