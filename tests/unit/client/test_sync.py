"""The client without async has the same methods, and works."""

import asyncio
import inspect
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from inferplane.client import artifact, auth, errors, inference, reporting, sync
from tests.support.fake_serving import FakeMesh


def _use(mesh: FakeMesh, path: Path) -> tuple[str, list[str], float]:
    with sync.Inferplane.connect(mesh.endpoints, mesh.auth.issue().access_token) as plane:
        version = plane.artifact.push("digits", path)
        names = [model.name for model in plane.artifact.list_models()]
        answer = plane.inference.predict("digits", {"x": np.array([0.5])})
        with pytest.raises(errors.NotFound):
            plane.artifact.get_model("none")
    return version.name, names, float(answer.outputs["x"][0])


async def test_calls_block_until_they_are_answered(mesh: FakeMesh, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"bytes")
    used = await asyncio.to_thread(_use, mesh, path)
    assert used == ("models/digits/versions/1", ["models/digits"], 0.5)
    assert "inferplane-client" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (auth, "AuthClient"),
        (artifact, "ArtifactClient"),
        (inference, "InferenceClient"),
        (reporting, "ReportingClient"),
    ],
)
def test_no_method_is_missing(module: ModuleType, name: str) -> None:
    there = {method for method, _ in inspect.getmembers(getattr(module, name), inspect.isfunction)}
    here = {method for method, _ in inspect.getmembers(getattr(sync, name), inspect.isfunction)}
    assert {method for method in there if not method.startswith("_")} <= here


async def test_an_interrupt_cancels_the_call() -> None:
    thread = sync.LoopThread()
    thread.start()
    begun, cancelled = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    def wait() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("concurrent.futures.Future.result", _interrupted_after(begun))
            thread.run(work())

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert cancelled.wait(10)
    thread.stop()


def _interrupted_after(event: threading.Event) -> object:
    def result(_: object) -> None:
        assert event.wait(10)
        raise KeyboardInterrupt

    return result
