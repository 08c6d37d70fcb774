"""DeploymentService between its tables and the registry."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import URL

from inferplane.inference.v1 import deployment_service_pb2 as pb
from inferplane.inference.v1.deployment_service_pb2_grpc import DeploymentServiceStub
from inferplane.server.inference.deployments import Deployments, VersionInfo
from inferplane.server.inference.model_source import ModelSource
from inferplane.server.inference.repository import DeploymentReader, DeploymentRepository
from inferplane.server.keys import MasterKey
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage.audit import Actor
from inferplane.server.storage.database import Database
from inferplane.server.storage.pages import Page
from inferplane.server.storage.unit_of_work import UnitOfWorkFactory
from inferplane.server.tensors import Signature
from tests.conftest import execute
from tests.support.database import rows
from tests.support.mesh import running_mesh, until

NAMES = ["B", "Z", "a-1", "a.1", "a1", "b"]


def version(number: int = 1) -> VersionInfo:
    return VersionInfo("m", number, "sha256:" + "0" * 64, 4, Signature((), ()), "")


async def test_pages_follow_the_order_that_filters_them(database_url: URL, settings: Settings) -> None:
    """Which the column says itself, so that a database of another collation sorts no other way."""
    query = "SELECT collation_name FROM information_schema.columns WHERE (table_schema, table_name, column_name) = "
    assert await rows(database_url, query + "('inference', 'deployment', 'name')") == [("C",)]
    database = Database(settings, ServiceName.INFERENCE)
    units = UnitOfWorkFactory(database, MasterKey(bytes(32)))
    for name in NAMES:
        async with units(Actor("users/alice")) as unit:
            await Deployments().create(DeploymentRepository(unit), name, version(), "users/alice")
            await unit.commit()
    listed: list[str] = []
    after: str | None = None
    while not listed or after is not None:
        async with database.transaction() as connection:
            page, after = await DeploymentReader(connection).visible(Page(2, after), lambda _name: True)
        listed += [deployment.name for deployment in page]
    await database.close()
    assert listed == sorted(NAMES)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The registry hangs; the names that it was asked for."""
    asked: list[str] = []

    async def hang(_source: ModelSource, name: str, _caller: str) -> Any:
        asked.append(name)
        await asyncio.Event().wait()

    monkeypatch.setattr(ModelSource, "version", hang)
    return asked


@pytest.fixture
async def mesh(settings: Settings) -> AsyncIterator[Any]:
    """All services, and a Triton that does not answer."""
    async with running_mesh(settings.model_copy(update={"triton_endpoint": "127.0.0.1:1"}), *ServiceName) as mesh:
        yield mesh


async def test_while_the_registry_hangs_no_database_connection_is_held(mesh: Any, hanging: list[str]) -> None:
    stub: Any = DeploymentServiceStub(mesh.channels[ServiceName.INFERENCE])
    metadata = await mesh.login()
    more_than_the_pool = 3 * mesh.settings.database_pool_size
    requests = [
        pb.CreateDeploymentRequest(
            deployment_id=f"m{number}", model_version="models/m/versions/1", idempotency_key=f"key-{number}"
        )
        for number in range(more_than_the_pool)
    ]
    calls = [stub.CreateDeployment(request, metadata=metadata) for request in requests]
    await until(lambda: len(hanging) == more_than_the_pool)
    assert (await stub.ListDeployments(pb.ListDeploymentsRequest(), metadata=metadata)).deployments == []
    for call in calls:
        call.cancel()


OLD_CODE = (
    """
    INSERT INTO inference.deployment (id, name, model, version, digest, size, signature, label_output, state,
    state_message, created_at, creator) VALUES ('00000000-0000-0000-0000-000000000001', 'm', 'm', 1, 'sha256:0', 4,
    '', '', 'LOADING', '', now(), 'users/alice')
    """,
    "UPDATE inference.deployment SET state = 'READY', state_message = ''",
    "SELECT deployment, model, version, digest, signature, label_output, ready FROM policy.routes",
    "UPDATE inference.deployment SET deleted_at = now()",
    "DELETE FROM inference.deployment",
)
"""What workers of the release before do."""


async def test_workers_of_the_release_before_run_on_the_new_schema(database_url: URL) -> None:
    for statement in OLD_CODE:
        await execute(database_url, f"SET ROLE inferplane_inference; {statement}")
