"""How a model reaches a real Triton: through a process of its own, which takes the bytes itself."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from inferplane.artifact.v1 import artifact_service_pb2 as artifact_pb
from inferplane.artifact.v1 import artifact_service_pb2_grpc
from inferplane.inference.v1.deployment_pb2 import Deployment
from inferplane.server.commands.doctor import examine
from inferplane.server.inference.deployments import Served, VersionInfo
from inferplane.server.inference.reconcile import load_child
from inferplane.server.inference.reconcile.load_job import LoadJob
from inferplane.server.inference.reconcile.loader import AwayError, LoadRefusedError, ModelLoader
from inferplane.server.inference.triton_link import TritonLink
from inferplane.server.settings import Settings
from inferplane.server.tensors import Signature, TensorSpec
from tests.support.artifact import digest
from tests.support.mesh import until
from tests.support.onnx_models import identity
from tests.support.serving import ControlledTriton, constant, serving, until_async

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
MODEL = identity().SerializeToString()


class Bytes(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """An artifact service that gives `content` in pieces, after `held`; keeps what it was asked."""

    def __init__(self) -> None:
        self.content = MODEL
        self.held = asyncio.Event()
        self.held.set()
        self.asked: list[tuple[int, int, str]] = []

    async def ReadArtifact(  # noqa: N802 - the contract's name
        self, request: artifact_pb.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[artifact_pb.ReadArtifactResponse]:
        metadata = dict(context.invocation_metadata())
        self.asked.append((request.offset, request.limit, str(metadata["authorization"])))
        await self.held.wait()
        end = request.offset + request.limit
        for offset in range(request.offset, min(end, len(self.content)), 64):
            data = self.content[offset : min(offset + 64, end)]
            yield artifact_pb.ReadArtifactResponse(offset=offset, data=data)

    WriteArtifact: Any = None
    GetWriteStatus: Any = None


class Stand:
    """A loader between that service and a real Triton."""

    def __init__(self, source: Bytes, address: str, triton: ControlledTriton) -> None:
        self.source = source
        self.triton = triton
        self.link = TritonLink(triton.endpoint, triton.header, 1 << 20)
        self.signed = 0
        self.loader = ModelLoader(self.link, address, self.credentials)

    def credentials(self) -> list[tuple[str, str]]:
        self.signed += 1
        return [("authorization", f"Bearer {self.signed}")]

    def version(self, number: int = 1) -> VersionInfo:
        content = self.source.content
        return VersionInfo("m", number, digest(content), len(content), SIGNATURE, "")


@pytest.fixture
def arguments() -> tuple[str, ...]:
    """Arguments of Triton's that are others than usual."""
    return ()


@pytest.fixture
async def stand(tmp_path: Path, arguments: tuple[str, ...]) -> AsyncIterator[Stand]:
    triton, source, server = ControlledTriton(tmp_path / "triton", arguments), Bytes(), grpc.aio.server()
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(source, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await triton.start()
    stand = Stand(source, f"127.0.0.1:{port}", triton)
    yield stand
    await stand.link.close()
    await triton.stop()
    await server.stop(0)


def loading() -> list[psutil.Process]:
    """The processes that load for this one."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("load_child" in word for word in child.cmdline()):
                found.append(child)
    return found


async def test_a_model_is_loaded_with_the_digest_of_its_bytes(stand: Stand) -> None:
    await stand.loader.load("m", stand.version(7))
    assert await stand.link.served("m") == Served(digest(MODEL), 7)
    assert stand.source.asked == [(0, len(MODEL), "Bearer 1")]
    assert loading() == []
    await stand.loader.unload("m")
    assert await stand.link.served("m") is None


async def test_each_range_is_asked_for_with_fresh_credentials(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where the size of a range can be made small."""
    monkeypatch.setattr(load_child, "RANGE", 30)
    version = stand.version()
    job = LoadJob(
        artifact=stand.loader._artifact,
        model_version="models/m/versions/1",
        digest=version.digest,
        size=version.size,
        triton="",
        triton_metadata=(),
        head=b"head",
        timeout=1,
    )
    message = await asyncio.to_thread(load_child._message, job, stand.credentials)
    assert message == b"head" + MODEL
    ranges = [(start, min(30, len(MODEL) - start)) for start in range(0, len(MODEL), 30)]
    assert len(ranges) > 1
    assert stand.source.asked == [(*bounds, f"Bearer {n}") for n, bounds in enumerate(ranges, 1)]


async def test_other_bytes_than_those_of_the_digest_reach_no_triton(stand: Stand) -> None:
    version = stand.version()
    for content in (MODEL[:-1] + b"?", MODEL[:-1]):
        stand.source.content = content
        with pytest.raises(LoadRefusedError, match="the stored bytes are damaged"):
            await stand.loader.load("m", version)
    assert await stand.link.served("m") is None


async def test_an_artifact_service_that_is_away_says_nothing_of_the_model(stand: Stand) -> None:
    loader = ModelLoader(stand.link, "127.0.0.1:1", stand.credentials)
    with pytest.raises(AwayError, match="the artifact service does not answer"):
        await loader.load("m", stand.version())


async def test_what_triton_says_of_a_model_that_it_cannot_load_is_passed_on(stand: Stand) -> None:
    stand.source.content = b"not a model"
    with pytest.raises(LoadRefusedError, match=r"Triton could not load it: .*INVALID_PROTOBUF") as refused:
        await stand.loader.load("m", stand.version())
    assert "site-packages" not in str(refused.value)
    assert str(stand.triton._data_dir) not in str(refused.value)


async def test_a_load_that_is_given_up_leaves_no_process(stand: Stand) -> None:
    stand.source.held.clear()
    load = asyncio.create_task(stand.loader.load("m", stand.version()))
    await until(lambda: stand.source.asked != [], 30)
    (child,) = loading()
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    assert not child.is_running()
    stand.source.held.set()


async def test_a_loading_process_that_is_killed_fails_that_load_alone(stand: Stand) -> None:
    stand.source.held.clear()
    load = asyncio.create_task(stand.loader.load("m", stand.version()))
    await until(lambda: stand.source.asked != [], 30)
    (child,) = loading()
    child.kill()
    with pytest.raises(LoadRefusedError, match="ended with status -9"):
        await load
    stand.source.held.set()
    await stand.loader.load("m", stand.version())


async def test_secrets_stand_neither_in_the_arguments_nor_in_the_environment_of_the_loading_process(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERPLANE_DATABASE_URL", "postgresql://owner:secret@host/database")
    stand.source.held.clear()
    load = asyncio.create_task(stand.loader.load("m", stand.version()))
    await until(lambda: stand.source.asked != [], 30)
    (child,) = loading()
    shown = " ".join([*child.cmdline(), *child.environ(), *child.environ().values()])
    stand.source.held.set()
    await load
    assert stand.triton.header[1] not in shown
    assert "Bearer" not in shown
    assert "INFERPLANE_DATABASE_URL" not in shown


PARENT = """
import asyncio, sys
from inferplane.server.inference.reconcile.load_job import LoadJob
from inferplane.server.inference.reconcile.loader import ModelLoader

async def main():
    job = LoadJob(sys.argv[1], "models/m/versions/1", "sha256:0", 4, "127.0.0.1:1", (), b"", 9.0)
    await ModelLoader(None, sys.argv[1], lambda: [("authorization", "Bearer 1")])._run(job)

asyncio.run(main())
"""


async def test_the_loading_process_dies_with_the_one_that_started_it(stand: Stand) -> None:
    stand.source.held.clear()
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stand.loader._artifact)
    await until(lambda: stand.source.asked != [], 30)
    (child,) = psutil.Process(parent.pid).children()
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 30)
    stand.source.held.set()


async def checks(stand: Stand, settings: Settings) -> tuple[bool, str]:
    """What `doctor` finds of Triton."""
    name, value = stand.triton.header
    own = {"triton_endpoint": stand.triton.endpoint, "triton_header_name": name, "triton_header_value": value}
    findings = await examine(Settings.model_validate({**settings.model_dump(), **own}))
    return next((ok, detail) for check, ok, detail in findings if check == "triton")


async def test_doctor_finds_a_triton_in_explicit_mode_fit(stand: Stand, settings: Settings) -> None:
    assert await checks(stand, settings) == (True, f"{stand.triton.endpoint} is ready")


@pytest.mark.parametrize("arguments", [("--model-control-mode=none",), ("--model-control-mode=poll",)])
async def test_a_triton_that_takes_no_models_is_found_by_doctor_and_said_by_the_loader(
    stand: Stand, settings: Settings
) -> None:
    fit, detail = await checks(stand, settings)
    assert not fit
    assert "--model-control-mode=explicit" in detail
    with pytest.raises(LoadRefusedError, match=r"--model-control-mode=explicit.*polling is enabled"):
        await stand.loader.load("m", stand.version())
    assert stand.source.asked == []


async def test_a_deployment_says_that_triton_takes_no_models(settings: Settings, tmp_path: Path) -> None:
    async with serving(settings, tmp_path / "triton", ["--model-control-mode=none"]) as served:
        await served.create("m", await served.push("m", constant(1)))
        failed = await served.until("m", lambda found: found.state == Deployment.STATE_FAILED)
        assert "--model-control-mode=explicit" in failed.state_message


HANGS = b"""
import time
class TritonPythonModel:
    def initialize(self, args): time.sleep(12)
    def execute(self, requests): return []
"""


async def test_a_deployment_deleted_while_triton_loads_it_is_gone_afterwards(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton cannot be made to give up a load, and unloads a model only after it."""
    monkeypatch.setattr("inferplane.server.inference.formats.onnx._support_files", slowly)
    load = asyncio.create_task(stand.loader.load("m", stand.version()))
    await until_async(has_begun(stand), 30)
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    await stand.loader.unload("m")
    assert await stand.link.served("m") is None
    await asyncio.to_thread(lambda: [stub.wait(30) for stub in stubs(stand)])
    assert await stand.link.served("m") is None


async def test_loads_that_hang_in_triton_hold_up_no_other(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("inferplane.server.inference.formats.onnx._support_files", slowly)
        hung = [asyncio.create_task(stand.loader.load(f"hung-{n}", stand.version())) for n in range(3)]
        await until(lambda: len(stubs(stand)) == 3, 30)
    await stand.loader.load("m", stand.version())
    assert [task.done() for task in hung] == [False] * 3
    for task in hung:
        task.cancel()
    await asyncio.gather(*hung, return_exceptions=True)


def slowly(version: int, *, native: bool) -> dict[str, bytes]:
    return {} if native else {f"file:{version}/model.py": HANGS}


def stubs(stand: Stand) -> list[psutil.Process]:
    return [child for child in psutil.Process(stand.triton.pid).children() if "stub" in name_of(child)]


def name_of(process: psutil.Process) -> str:
    """Empty where it has ended meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def has_begun(stand: Stand) -> Callable[[], Awaitable[bool]]:
    async def begun() -> bool:
        return bool(stubs(stand))

    return begun
