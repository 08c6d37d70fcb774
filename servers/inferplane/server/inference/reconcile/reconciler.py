"""Brings Triton to what the tables say: effects outside the database follow the commit.

All inference workers run one; the one that leads acts. It remembers only what it has begun and what has failed: which
bytes Triton serves, Triton is asked, so a restart of either side is found and mended.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from inferplane.server.errors import InferplaneError
from inferplane.server.inference.deployments import Served
from inferplane.server.inference.reconcile.loader import AwayError, LoadRefusedError, NotControlledError
from inferplane.server.inference.reconcile.plan import Action, Confirm, Load, Retries, Unload, key_of, plan
from inferplane.server.inference.repository import DeploymentReader, DeploymentRepository
from inferplane.server.names import DEPLOYMENT, WORKLOAD
from inferplane.server.settings import ServiceName
from inferplane.server.storage.audit import Actor
from inferplane.server.tasks import start_task

if TYPE_CHECKING:
    from inferplane.server.inference.deployments import Deployment, State, VersionInfo
    from inferplane.server.inference.reconcile.loader import ModelLoader
    from inferplane.server.inference.triton_link import TritonLink
    from inferplane.server.storage.database import Database
    from inferplane.server.storage.leadership import Leadership
    from inferplane.server.storage.unit_of_work import UnitOfWorkFactory

__all__ = ["LEADER_LOCK", "Reconciler"]

log = structlog.get_logger()

LEADER_LOCK = 0x7265636F6E
LOST = "Triton serves it no more; it is loaded again"
INTERVAL = 1.0
QUESTIONS = 32
"""Names that Triton is asked about at once."""
ACTOR = Actor(WORKLOAD.format(ServiceName.INFERENCE))


class Reconciler:
    """Looks at the tables whenever they change, and every second."""

    def __init__(
        self,
        leadership: "Leadership",
        database: "Database",
        units_of_work: "UnitOfWorkFactory",
        triton: "TritonLink",
        loader: "ModelLoader",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leadership = leadership
        self._database = database
        self._units_of_work = units_of_work
        self._triton = triton
        self._loader = loader
        self._clock = clock
        self._wake = asyncio.Event()
        self._running: dict[str, tuple[Action, asyncio.Task[None]]] = {}
        self._refused = Retries()
        # Whoever is away may be back in a second, and then every deployment waits for this.
        self._away = Retries(first=0.5, longest=4.0)

    def wake(self) -> None:
        """Look at the tables now."""
        self._wake.set()

    async def run(self) -> None:
        """Follow the tables whenever this process leads, until cancelled."""
        await self._leadership.run(self.lead)

    async def lead(self) -> None:
        """Follow the tables until cancelled; nothing that was begun goes on then."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self.reconcile()
                except InferplaneError as error:
                    log.warning("reconciler_waits", error=str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL):
                        await self._wake.wait()
        finally:
            await self._cancel(list(self._running))

    async def reconcile(self) -> None:
        """Look once: begin what is to be done and give up what is not any more. Raises DEPENDENCY_UNAVAILABLE."""
        async with self._database.transaction() as connection:
            deployments = await DeploymentReader(connection).all_with_deleted()
        self._remember_only(deployments)
        if not await self._triton.live():
            await self._say_all(deployments, "waits for Triton, which does not answer")
            return
        names = {row.name for row in deployments if not row.deleted} - self._running.keys()
        served = await self._served(names)
        deployments = await self._without_lost(deployments, served)
        running = {name: action for name, (action, _) in self._running.items()}
        decided = plan(deployments, served, running, (self._refused, self._away), self._clock())
        await self._cancel(decided.cancel)
        for action in decided.start:
            name = action.deployment.name
            task = start_task(self._act(name, action), name=f"reconcile {name}")
            self._running[name] = (action, task)
            task.add_done_callback(partial(self._ended, name))

    async def _without_lost(
        self, deployments: Iterable["Deployment"], served: Mapping[str, Served | None]
    ) -> list["Deployment"]:
        """The same, but those READY that Triton serves no more, such as after its restart, are loaded again."""
        rows = []
        for row in deployments:
            if not row.deleted and row.state == "READY" and served.get(row.name, row) is None:
                await self._set_state(row, "LOADING", LOST)
                row = replace(row, state="LOADING", state_message=LOST)
            rows.append(row)
        return rows

    def _remember_only(self, deployments: Iterable["Deployment"]) -> None:
        keys = set()
        for row in deployments:
            keys.add(key_of(row, row.version))
            if row.incoming is not None:
                keys.add(key_of(row, row.incoming.version))
        self._refused.keep(keys)
        self._away.keep(keys)

    async def _served(self, names: Iterable[str]) -> dict[str, Served | None]:
        """What Triton serves under each name of which it can say."""
        slots = asyncio.Semaphore(QUESTIONS)

        async def ask(name: str) -> Served | None:
            async with slots:
                return await self._triton.served(name)

        asked = list(names)
        answers = await asyncio.gather(*(start_task(ask(name)) for name in asked), return_exceptions=True)
        if failures := [answer for answer in answers if isinstance(answer, BaseException)]:
            log.warning("triton_cannot_say", deployments=len(failures), first=str(failures[0])[:300])
        return {name: said for name, said in zip(asked, answers, strict=True) if not isinstance(said, BaseException)}

    async def _cancel(self, names: Iterable[str]) -> None:
        tasks = [self._running[name][1] for name in names if name in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _act(self, name: str, action: Action) -> None:
        try:
            match action:
                case Load():
                    await self._load(action.deployment, action.version)
                case Confirm():
                    await self._confirm(action.deployment, action.version)
                case Unload():
                    await self._unload(action.deployment, from_triton=action.from_triton)
        except InferplaneError as error:
            # The database is away: what was done in Triton is found again.
            log.warning("reconciler_waits", deployment=name, error=str(error))
        else:
            self._wake.set()

    def _ended(self, name: str, task: "asyncio.Task[None]") -> None:
        action, _ = self._running.pop(name)
        if task.cancelled() or (error := task.exception()) is None:
            return
        delay = INTERVAL
        if isinstance(action, Load):
            # Such as a process that cannot be started. Not at once again: a load may fail late and cost much.
            delay = self._refused.failed(key_of(action.deployment, action.version), self._clock())
        log.error("reconciler_action_failed", deployment=name, retry_after=delay, exc_info=error)

    async def _load(self, deployment: "Deployment", version: "VersionInfo") -> None:
        key = key_of(deployment, version)
        async with self._database.transaction() as connection:
            described = await DeploymentReader(connection).with_signature(deployment, version)
        if described is None:
            return
        log.info("deployment_loading", deployment=deployment.name, digest=version.digest)
        try:
            await self._loader.load(deployment.name, described)
        except AwayError as away:
            # Not the deployment's fault: its state stays.
            delay = self._away.failed(key, self._clock())
            log.warning("deployment_waits", deployment=deployment.name, reason=str(away), retry_after=delay)
            await self._say(deployment, f"waits: {away}")
        except LoadRefusedError as refusal:
            # A Triton that takes no models is restarted in another mode, and tried without any bytes until then.
            retries = self._away if isinstance(refusal, NotControlledError) else self._refused
            delay = retries.failed(key, self._clock())
            log.warning("deployment_load_failed", deployment=deployment.name, why=str(refusal), retry_after=delay)
            await self._refuse(deployment, version, str(refusal))
        else:
            await self._confirm(deployment, version)

    async def _unload(self, deployment: "Deployment", *, from_triton: bool) -> None:
        if from_triton:
            try:
                await self._loader.unload(deployment.name)
            except (AwayError, LoadRefusedError) as error:
                self._away.failed(key_of(deployment, deployment.version), self._clock())
                log.warning("unload_failed", deployment=deployment.name, error=str(error))
                return
        async with self._database.transaction() as connection:
            await DeploymentReader(connection).delete(deployment.id)
            await connection.commit()

    async def _confirm(self, deployment: "Deployment", version: "VersionInfo") -> None:
        """What Triton serves is what was wanted: the deployment's own version or the one that replaces it."""
        for retries in (self._away, self._refused):
            retries.succeeded(key_of(deployment, version))
        if version == deployment.version:
            await self._set_state(deployment, "READY", "")
            return
        async with self._units_of_work(ACTOR) as unit:
            store = DeploymentRepository(unit)
            if await store.promote(deployment.name, version):
                store.record("deployment.replaced", DEPLOYMENT.format(deployment.name), digest=version.digest)
                await unit.commit()

    async def _refuse(self, deployment: "Deployment", version: "VersionInfo", problem: str) -> None:
        if version == deployment.version:
            await self._set_state(deployment, "FAILED", problem)
            return
        if deployment.incoming is None or deployment.incoming.problem == problem:
            return
        async with self._units_of_work(ACTOR) as unit:
            store = DeploymentRepository(unit)
            if await store.set_problem(deployment.id, version, problem):
                store.record("deployment.replacement_failed", DEPLOYMENT.format(deployment.name), digest=version.digest)
                await unit.commit()

    async def _set_state(self, deployment: "Deployment", state: "State", message: str) -> None:
        if (state, message) == (deployment.state, deployment.state_message):
            return
        async with self._units_of_work(ACTOR) as unit:
            store = DeploymentRepository(unit)
            if await store.set_state(deployment.id, deployment.version, state, message):
                action = f"deployment.{state.lower()}"
                store.record(action, DEPLOYMENT.format(deployment.name), digest=deployment.version.digest)
                await unit.commit()

    async def _say_all(self, deployments: Iterable["Deployment"], message: str) -> None:
        for deployment in deployments:
            await self._say(deployment, message)

    async def _say(self, deployment: "Deployment", message: str) -> None:
        """Tell people what a deployment waits for. No audit event: nothing was done."""
        if deployment.deleted or deployment.state != "LOADING" or deployment.state_message == message:
            return
        async with self._database.transaction() as connection:
            await DeploymentReader(connection).say(deployment.id, message)
            await connection.commit()
