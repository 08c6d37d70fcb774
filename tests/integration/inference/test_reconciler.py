"""What becomes of a deployment while Triton and the artifact service come and go."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.deployments import Deployments, VersionInfo
from inferplane.server.inference.reconcile.reconciler import Reconciler
from inferplane.server.inference.repository import DeploymentReader, DeploymentRepository
from inferplane.server.keys import MasterKey
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory
from inferplane.server.tensors import Signature

VERSION = VersionInfo("m", 1, "sha256:" + "0" * 64, 4, Signature((), ()), "")


class Triton:
    """Loads what it is given; raises `fails` where it is set. Also stands for the artifact service."""

    def __init__(self) -> None:
        self.fails: dict[str, Exception] = {}
        self.digest: str | None = None

    def step(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    async def live(self) -> bool:
        return True

    async def model_ready(self, name: str, version: int) -> bool:
        return self.digest is not None

    async def model_parameter(self, name: str, key: str) -> str | None:
        self.step("ask")
        return self.digest

    async def read(self, version: VersionInfo) -> bytes:
        self.step("read")
        return b"onnx"

    async def load(self, *_arguments: Any, digest: str, **_options: Any) -> None:
        self.step("load")
        self.digest = digest

    async def unload(self, name: str, *, timeout: float | None = None) -> None:
        self.digest = None


def of_triton(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing)


class Stand:
    def __init__(self, database: Database, units: UnitOfWorkFactory) -> None:
        self.database = database
        self.triton = Triton()
        part: Any = self.triton
        self.reconciler = Reconciler(self.never, database, units, part, part, part)

    async def never(self) -> Any:
        raise AssertionError("passes are made by hand")

    async def state_after_a_pass(self) -> str:
        await self.reconciler._reconcile()
        async with self.database.transaction() as connection:
            deployment = await DeploymentReader(connection).get("m")
        assert deployment is not None
        return deployment.state


@pytest.fixture
async def stand(settings: Settings) -> AsyncIterator[Stand]:
    database = Database(settings, ServiceName.INFERENCE)
    units = UnitOfWorkFactory(database, MasterKey(bytes(32)))
    async with units(Actor("users/alice")) as unit:
        await Deployments().create(DeploymentRepository(unit), "m", VERSION, "users/alice")
        await unit.commit()
    yield Stand(database, units)
    await database.close()


AWAY = {
    "ask": of_triton(grpc.StatusCode.UNAVAILABLE),
    "load": of_triton(grpc.StatusCode.UNAVAILABLE),
    "read": InferplaneError(ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE),
}


@pytest.mark.parametrize("step", AWAY)
async def test_what_is_away_fails_no_deployment_and_holds_none_up_when_it_is_back(stand: Stand, step: str) -> None:
    stand.triton.fails = {step: AWAY[step]}
    assert await stand.state_after_a_pass() == "LOADING"
    stand.triton.fails = {}
    assert await stand.state_after_a_pass() == "READY"


async def test_a_model_that_triton_cannot_load_has_failed(stand: Stand) -> None:
    stand.triton.fails = {"load": of_triton(grpc.StatusCode.INTERNAL)}
    assert await stand.state_after_a_pass() == "FAILED"


async def test_damaged_bytes_fail_the_deployment_and_reach_no_triton(stand: Stand) -> None:
    stand.triton.fails = {"read": InferplaneError(ErrorReason.ERROR_REASON_BLOB_CORRUPT)}
    assert await stand.state_after_a_pass() == "FAILED"
    assert stand.triton.digest is None


async def test_a_triton_that_lost_its_models_gets_them_back(stand: Stand) -> None:
    assert await stand.state_after_a_pass() == "READY"
    stand.triton.digest = None
    assert await stand.state_after_a_pass() == "READY"
    assert stand.triton.digest == VERSION.digest
