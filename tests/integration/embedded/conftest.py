import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from inferplane.server.embedded.postgres import EmbeddedPostgres

QUICK = {"fsync": "off"}


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path, because pytest's own may leave no room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:

        async def create() -> None:
            postgres = EmbeddedPostgres(Path(folder) / "pg")
            await postgres.start()
            await postgres.stop()

        asyncio.run(create())
        yield Path(folder) / "pg"


@pytest.fixture
def data_dir(home: Path, template: Path) -> Path:
    """A data directory whose first start is over."""
    shutil.copytree(template, home / "pg")
    return home / "pg"


@pytest.fixture
async def postgres(data_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    postgres = EmbeddedPostgres(data_dir, settings=QUICK)
    await postgres.start()
    yield postgres
    await postgres.stop()
