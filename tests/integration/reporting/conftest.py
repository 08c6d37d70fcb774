"""A mesh of Auth and Reporting, and Reporting's callers."""

from collections.abc import AsyncIterator

import pytest

from inferplane.server.settings import ServiceName, Settings
from tests.integration.reporting.records import Reporting
from tests.support.mesh import running_mesh


@pytest.fixture
async def reporting(settings: Settings) -> AsyncIterator[Reporting]:
    async with running_mesh(settings, ServiceName.AUTH, ServiceName.REPORTING) as mesh:
        yield Reporting(mesh, await mesh.login())
