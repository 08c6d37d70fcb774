"""A whole mesh, started once for the tests that leave it as it was."""

from collections.abc import Iterator

import pytest

from tests.support.up import Up, running_up


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("up")) as up:
        yield up
