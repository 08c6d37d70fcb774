"""The command, run in a thread of this process against a fake mesh."""

import asyncio
import contextlib
import io
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest

from inferplane.cli.main import run
from tests.support.cli import Cli, Result
from tests.support.fake_serving import FakeMesh, fake_mesh


@pytest.fixture
async def mesh() -> AsyncIterator[FakeMesh]:
    async with fake_mesh() as served:
        yield served


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty INFERPLANE_HOME."""
    monkeypatch.setenv("INFERPLANE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("INFERPLANE_READY_FILE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def ready_file(mesh: FakeMesh, tmp_path: Path) -> Path:
    path = tmp_path / "ready.json"
    path.write_text(json.dumps({"endpoints": asdict(mesh.endpoints)}))
    return path


@pytest.fixture
def cli(home: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the command with arguments and standard input; nothing is a terminal."""

    def run_here(arguments: tuple[str, ...], stdin: str) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
            code = run(arguments)
        return Result(code, out.getvalue(), err.getvalue())

    async def cli(*arguments: object, stdin: str = "") -> Result:
        return await asyncio.to_thread(run_here, tuple(map(str, arguments)), stdin)

    return cli


@pytest.fixture
async def logged_in(cli: Cli, ready_file: Path) -> Cli:
    """The command, after a login that remembered the mesh."""
    login = ("login", "--username", "alice", "--password-file", "-", "--ready-file", ready_file)
    assert (await cli(*login, stdin="correct horse battery\n")).code == 0
    return cli
