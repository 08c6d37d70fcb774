"""The artifact service, with Auth beside it."""

from collections.abc import AsyncIterator

import pytest

from inferplane.server.settings import ServiceName, Settings
from tests.support.artifact import Artifacts
from tests.support.mesh import Mesh, running_mesh


@pytest.fixture
async def mesh(settings: Settings) -> AsyncIterator[Mesh]:
    async with running_mesh(settings, ServiceName.AUTH, ServiceName.ARTIFACT) as mesh:
        yield mesh


@pytest.fixture
async def artifacts(mesh: Mesh) -> Artifacts:
    """The service as its administrator, with the model `digits`."""
    artifacts = await Artifacts.of(mesh)
    await artifacts.model()
    return artifacts
