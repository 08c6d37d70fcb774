"""What becomes of deployments while Triton and the artifact service come, go, fail and hang."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
import pytest
from sqlalchemy import URL
from structlog.testing import capture_logs

from inferplane.server.access.source import PolicySource
from inferplane.server.inference.deployments import Deployment, Deployments, Served, VersionInfo
from inferplane.server.inference.reconcile.loader import AwayError, LoadRefusedError, NotControlledError
from inferplane.server.inference.reconcile.reconciler import LOST, Reconciler
from inferplane.server.inference.repository import DeploymentReader, DeploymentRepository
from inferplane.server.keys import MasterKey
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage import database
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.leadership import Leadership
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory
from inferplane.server.tensors import Signature
from tests.conftest import execute
from tests.support.mesh import until

ALICE = Actor("users/alice")


ENDS = [SystemExit(3), KeyboardInterrupt()]
"""What would end the process, were it raised in a task of asyncio's."""


def version(number: int = 1, model: str = "m") -> VersionInfo:
    return VersionInfo(model, number, f"sha256:{number:064}", 4, Signature((), ()), "")


class Triton:
    """Loads what it is told to; raises `fails` for a name and hangs on the names in `hangs`."""

    def __init__(self) -> None:
        self.is_live = True
        self.unanswered: BaseException | None = None
        self.serves: dict[str, Served] = {}
        self.fails: dict[str, BaseException] = {}
        self.hangs: set[str] = set()
        self.loads: list[tuple[str, int]] = []
        self.cancelled: list[str] = []

    async def live(self) -> bool:
        return self.is_live

    async def served(self, name: str) -> Served | None:
        if self.unanswered is not None:
            raise self.unanswered
        return self.serves.get(name)

    async def load(self, name: str, wanted: VersionInfo) -> None:
        self.loads.append((name, wanted.version))
        await self.step(name)
        self.serves[name] = Served(wanted.digest, wanted.version)

    async def unload(self, name: str) -> None:
        await self.step(name)
        self.serves.pop(name, None)

    async def step(self, name: str) -> None:
        if name in self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.append(name)
        if name in self.fails:
            raise self.fails[name]


class Stand:
    def __init__(self, settings: Settings) -> None:
        self.database = database.Database(settings, ServiceName.INFERENCE)
        self.units = UnitOfWorkFactory(self.database, MasterKey(bytes(32)))
        self.now = 0.0
        self.triton = Triton()
        part: Any = self.triton
        where = database.database_url(settings, ServiceName.INFERENCE)
        self.source = PolicySource(*where, 300)
        self.connect = partial(database.lone_connection, *where, "leader")
        self.leadership = Leadership(self.connect, 4711)
        self.reconciler = Reconciler(self.leadership, self.database, self.units, part, part, lambda: self.now)

    async def create(self, name: str = "m", shown: VersionInfo | None = None) -> None:
        async with self.units(ALICE) as unit:
            await Deployments().create(DeploymentRepository(unit), name, shown or version(), "users/alice")
            await unit.commit()

    async def replace(self, shown: VersionInfo, name: str = "m") -> Deployment:
        async with self.units(ALICE) as unit:
            deployment = await Deployments().replace(DeploymentRepository(unit), name, shown)
            await unit.commit()
            return deployment

    async def delete(self, name: str = "m") -> None:
        async with self.units(ALICE) as unit:
            await Deployments().delete(DeploymentRepository(unit), name)
            await unit.commit()

    async def rows(self) -> list[Deployment]:
        async with self.database.transaction() as connection:
            return await DeploymentReader(connection).all_with_deleted()

    async def get(self, name: str = "m") -> Deployment:
        async with self.database.transaction() as connection:
            deployment = await DeploymentReader(connection).get(name)
        assert deployment is not None
        return deployment

    async def execute(self, statement: str) -> None:
        connection = await self.connect()
        await connection.execute(statement)
        await connection.close()

    async def settle(self) -> None:
        """Let replacements have been asked for a minute ago, as every worker knows of them then."""
        await self.execute("UPDATE inference.other_target SET requested_at = requested_at - interval '1 minute'")

    async def passes(self, count: int = 2) -> Deployment:
        """Look that often, and let what is begun end unless it hangs."""
        for _ in range(count):
            await self.reconciler.reconcile()
            ending = [task for name, (_, task) in self.reconciler._running.items() if name not in self.triton.hangs]
            await asyncio.gather(*ending, return_exceptions=True)
            await asyncio.sleep(0)
        return await self.get()


@pytest.fixture
async def stand(settings: Settings) -> AsyncIterator[Stand]:
    stand = Stand(settings)
    await stand.create()
    yield stand
    await stand.reconciler._cancel(list(stand.reconciler._running))
    await stand.database.close()


async def test_what_is_away_fails_no_deployment_says_so_and_holds_none_up_when_it_is_back(stand: Stand) -> None:
    stand.triton.fails = {"m": AwayError("the artifact service does not answer")}
    waiting = await stand.passes()
    assert (waiting.state, waiting.state_message) == ("LOADING", "waits: the artifact service does not answer")
    stand.triton.fails = {}
    stand.now += 1
    ready = await stand.passes()
    assert (ready.state, ready.state_message) == ("READY", "")


async def test_what_triton_has_lost_is_not_ready_until_it_is_loaded_again(stand: Stand) -> None:
    assert (await stand.passes()).state == "READY"
    stand.triton.serves.clear()
    stand.triton.hangs.add("m")
    lost = await stand.passes(1)
    assert (lost.state, lost.state_message) == ("LOADING", LOST)
    stand.triton.hangs.clear()
    stand.triton.serves["m"] = Served(version().digest, 1)
    await stand.reconciler._cancel(["m"])
    again = await stand.passes()
    assert (again.state, again.state_message) == ("READY", "")


async def test_a_deployment_says_that_it_waits_for_a_triton_that_does_not_answer(stand: Stand) -> None:
    stand.triton.is_live = False
    waiting = await stand.passes()
    assert (waiting.state, waiting.state_message) == ("LOADING", "waits for Triton, which does not answer")
    assert stand.triton.loads == []


AWAY = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())


@pytest.mark.parametrize("failure", [AWAY, *ENDS], ids=["away", "exit", "interrupt"])
async def test_of_what_triton_cannot_say_nothing_is_done(stand: Stand, failure: BaseException) -> None:
    stand.triton.unanswered = failure
    assert (await stand.passes()).state == "LOADING"
    assert stand.triton.loads == []


async def test_what_cannot_be_loaded_has_failed_and_says_why(stand: Stand) -> None:
    stand.triton.fails = {"m": LoadRefusedError("Triton could not load it: no such operator")}
    failed = await stand.passes()
    assert (failed.state, failed.state_message) == ("FAILED", "Triton could not load it: no such operator")


@pytest.mark.parametrize("failure", [LoadRefusedError("broken"), OSError("no process"), *ENDS], ids=repr)
async def test_what_failed_is_tried_again_after_ever_longer_pauses(stand: Stand, failure: BaseException) -> None:
    stand.triton.fails = {"m": failure}
    tried_at: list[float] = []
    for second in range(100):
        stand.now = float(second)
        before = len(stand.triton.loads)
        await stand.passes(1)
        if len(stand.triton.loads) > before:
            tried_at.append(stand.now)
    assert tried_at == [0, 5, 15, 35, 75]


@pytest.mark.parametrize("failure", [OSError("no process"), *ENDS], ids=repr)
async def test_a_failure_that_nobody_foresaw_is_logged_with_its_cause(stand: Stand, failure: BaseException) -> None:
    stand.triton.fails = {"m": failure}
    with capture_logs() as lines:
        await stand.passes(1)
    (said,) = [line for line in lines if line["event"] == "reconciler_action_failed"]
    assert failure in (said["exc_info"], said["exc_info"].__cause__)


async def fails(*_: Any) -> bool:
    raise RuntimeError("nobody foresaw it")


async def test_what_serves_is_loaded_again_at_once_where_its_replacement_could_not_be_noted(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stand.passes()
    await stand.replace(version(2))
    await stand.settle()
    monkeypatch.setattr(DeploymentRepository, "promote", fails)
    await stand.passes(5)
    stand.triton.serves.clear()
    await stand.passes(1)
    assert stand.triton.loads == [("m", 1), ("m", 2), ("m", 1)]


async def test_what_was_loaded_and_noted_later_is_loaded_again_at_once(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DeploymentRepository, "set_state", fails)
        await stand.passes(1)
    await stand.passes(1)
    stand.triton.serves.clear()
    await stand.passes(1)
    assert stand.triton.loads == [("m", 1), ("m", 1)]


async def test_a_deletion_that_fails_as_nobody_foresaw_is_tried_again_at_the_next_look(stand: Stand) -> None:
    await stand.create("gone")
    await stand.passes()
    await stand.delete("gone")
    stand.triton.fails = {"gone": OSError("no process")}
    await stand.passes(1)
    stand.triton.fails = {}
    await stand.passes(1)
    assert [row.name for row in await stand.rows()] == ["m"]


async def test_a_triton_that_takes_no_models_is_asked_again_within_seconds(stand: Stand) -> None:
    stand.triton.fails = {"m": NotControlledError("start it with --model-control-mode=explicit")}
    for second in range(60):
        stand.now = float(second)
        assert (await stand.passes(1)).state in ("LOADING", "FAILED")
    assert len(stand.triton.loads) > 10
    stand.triton.fails = {}
    stand.now += 5
    assert (await stand.passes()).state == "READY"


async def test_asking_again_for_what_failed_is_tried_at_once(stand: Stand) -> None:
    stand.triton.fails = {"m": LoadRefusedError("broken")}
    await stand.passes()
    stand.triton.fails = {}
    assert (await stand.replace(version())).state == "LOADING"
    assert (await stand.passes()).state == "READY"


async def test_a_triton_that_lost_its_models_gets_them_back(stand: Stand) -> None:
    assert (await stand.passes()).state == "READY"
    stand.triton.serves.clear()
    await stand.passes()
    assert stand.triton.serves["m"].digest == version().digest


async def test_a_load_that_hangs_holds_up_neither_other_loads_nor_deletions(stand: Stand) -> None:
    await stand.create("gone")
    await stand.passes()
    await stand.create("hung")
    await stand.create("other")
    await stand.delete("gone")
    stand.triton.hangs = {"hung"}
    await stand.passes()
    assert (await stand.get("other")).state == "READY"
    assert [row.name for row in await stand.rows()] == ["m", "hung", "other"]
    assert "gone" not in stand.triton.serves


async def test_deleting_what_hangs_gives_its_load_up(stand: Stand) -> None:
    stand.triton.hangs = {"m"}
    await stand.reconciler.reconcile()
    await until(lambda: stand.triton.loads != [])
    await stand.delete()
    await stand.reconciler.reconcile()
    assert stand.triton.cancelled == ["m"]
    stand.triton.hangs = set()
    await stand.reconciler.reconcile()
    await asyncio.gather(*(task for _, task in stand.reconciler._running.values()))
    assert await stand.rows() == []


async def test_a_leader_that_lost_its_lock_gives_its_loads_up_at_once(stand: Stand, database_url: URL) -> None:
    stand.triton.hangs = {"m"}
    leading = asyncio.create_task(stand.reconciler.run())
    await until(lambda: stand.triton.loads != [])
    holders = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND granted"
    await execute(database_url, holders)
    await until(lambda: stand.triton.cancelled == ["m"])
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)


async def test_a_replacement_serves_nothing_less_until_it_is_loaded_and_then_takes_over(stand: Stand) -> None:
    await stand.passes()
    asked = await stand.replace(version(2))
    assert (asked.state, asked.version.version, asked.incoming and asked.incoming.version) == ("READY", 1, version(2))
    await stand.passes()
    assert stand.triton.serves["m"].version == 1
    await stand.settle()
    replaced = await stand.passes()
    assert (replaced.state, replaced.version, replaced.incoming) == ("READY", version(2), None)
    assert replaced.formers == (version(1),)
    assert stand.triton.serves["m"].version == 2


async def test_a_replacement_that_fails_leaves_what_serves_ready_and_says_why(stand: Stand) -> None:
    await stand.passes()
    await stand.replace(version(2))
    await stand.settle()
    stand.triton.fails = {"m": LoadRefusedError("no such operator")}
    failed = await stand.passes()
    assert (failed.state, failed.state_message, failed.version) == ("READY", "", version(1))
    assert failed.incoming is not None
    assert failed.incoming.problem == "no such operator"


async def test_a_newer_wish_supersedes_a_load_that_hangs(stand: Stand) -> None:
    await stand.passes()
    await stand.replace(version(2))
    await stand.settle()
    stand.triton.hangs = {"m"}
    await stand.reconciler.reconcile()
    await until(lambda: stand.triton.loads[-1] == ("m", 2))
    await stand.replace(version(3))
    await stand.settle()
    await stand.reconciler.reconcile()
    assert stand.triton.cancelled == ["m"]
    stand.triton.hangs = set()
    replaced = await stand.passes()
    assert replaced.version == version(3)
    assert set(replaced.formers) == {version(1), version(2)}


async def test_going_back_to_what_serves_withdraws_the_replacement(stand: Stand) -> None:
    await stand.passes()
    await stand.replace(version(2))
    back = await stand.replace(version(1))
    assert (back.version, back.incoming) == (version(1), None)
    await stand.settle()
    await stand.passes()
    assert stand.triton.loads == [("m", 1)]


async def test_what_never_served_is_replaced_outright(stand: Stand) -> None:
    stand.triton.fails = {"m": LoadRefusedError("broken")}
    await stand.passes()
    asked = await stand.replace(version(2))
    assert (asked.state, asked.version, asked.incoming) == ("LOADING", version(2), None)


async def test_former_targets_are_answered_for_and_not_kept_for_ever(stand: Stand) -> None:
    for number in range(2, 12):
        await stand.passes()
        await stand.replace(version(number))
        await stand.settle()
    replaced = await stand.passes()
    assert [former.version for former in replaced.formers] == [7, 8, 9, 10]


async def test_the_policy_routes_to_what_serves_and_knows_what_else_may_answer(stand: Stand) -> None:
    await stand.passes()
    await stand.replace(version(2))
    following = asyncio.create_task(stand.source.run())
    await stand.source.first_snapshot()
    route = stand.source.snapshot.routes["m"]
    assert (route.ready, route.target.version, [other.version for other in route.others]) == (True, 1, [2])
    await stand.settle()
    await stand.passes()
    await until(lambda: stand.source.snapshot.routes["m"].target.version == 2)
    former = stand.source.snapshot.routes["m"].answered_by(1)
    assert former is not None
    assert former.digest == version(1).digest
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
