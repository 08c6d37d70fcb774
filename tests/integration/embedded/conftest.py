import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from inferplane.server.embedded import triton
from inferplane.server.embedded.postgres import EmbeddedPostgres
from inferplane.server.embedded.triton import EmbeddedTriton

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedTriton]:
    """A running Triton for tests that leave it as it is."""
    server = EmbeddedTriton(tmp_path_factory.mktemp("shared"))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(params=["own folders", "shared folders"])
def folders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the system allows a mount namespace."""
    if request.param == "shared folders":

        async def forbidden(*_: object) -> tuple[str, ...]:
            return ()

        monkeypatch.setattr(triton, "private_folders", forbidden)
    return str(request.param)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedTriton]:
    """A Triton that is not started, in a folder that does not exist and has an awkward name."""
    server = EmbeddedTriton(tmp_path / "it's a $(dir)" / "triton")
    yield server
    await server.stop()
