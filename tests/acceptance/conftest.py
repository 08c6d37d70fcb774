"""A whole mesh, started once for the tests that leave it as it was."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.up import Up, running_up


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name: below pytest's own, PostgreSQL's socket would come near the longest path there is."""
    with TemporaryDirectory(prefix="inferplane-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def up() -> Iterator[Up]:
    with TemporaryDirectory(prefix="inferplane-") as directory, running_up(Path(directory)) as up:
        yield up
