"""A fake mesh, and clients of it."""

from collections.abc import AsyncIterator

import pytest

from inferplane.client import Backoff, Inferplane, Tokens
from tests.support.fake_serving import FakeMesh, fake_mesh


@pytest.fixture
async def mesh() -> AsyncIterator[FakeMesh]:
    async with fake_mesh() as served:
        yield served


@pytest.fixture
async def plane(mesh: FakeMesh) -> AsyncIterator[Inferplane]:
    tokens = Tokens.of(mesh.auth.issue())
    quick = Backoff(initial=0.001, maximum=0.01, attempts=4)
    async with Inferplane.connect(mesh.endpoints, tokens, backoff=quick) as connected:
        yield connected
