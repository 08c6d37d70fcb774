"""Parts that die, hang and come back. Each test has a mesh of its own."""

import asyncio
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

from inferplane.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from inferplane.client import Inferplane
from inferplane.client.errors import InferplaneClientError
from inferplane.server.embedded.postgres import EmbeddedPostgres
from tests.support.embedded_triton import assert_gone
from tests.support.http import get
from tests.support.kills import survive
from tests.support.loop_thread import LoopThread
from tests.support.onnx_models import identity, model, tensor
from tests.support.up import NOT_SERVING, SERVING, Up, running_up, wait_for

SERVICES = {
    "auth": ["inferplane.auth.v1.AuthService", "inferplane.auth.v1.IdentityService"],
    "artifact": ["inferplane.artifact.v1.ArtifactService", "inferplane.artifact.v1.ModelRegistryService"],
    "reporting": ["inferplane.reporting.v1.ReportingService"],
    "inference": ["inferplane.inference.v1.DeploymentService"],
}
"""What needs the database."""

VICTIMS = ["artifact", "auth", "inference", "reporting"]
DATA_PLANE = ["inference.GRPCInferenceService", "inferplane.inference.v1.InferenceService"]
X = np.arange(4, dtype=np.float32)


@pytest.fixture
def own_up(tmp_path: Path) -> Iterator[Up]:
    with running_up(tmp_path) as up:
        yield up


async def deploy(plane: Inferplane, directory: Path, name: str = "echo") -> None:
    path = directory / f"{name}.onnx"
    path.write_bytes(identity("FP32").SerializeToString())
    await plane.artifact.push(name, path)
    await plane.inference.deploy(name)


async def predicts(plane: Inferplane, name: str = "echo") -> bool:
    try:
        answer = await plane.inference.predict(name, {"x": X})
    except InferplaneClientError:
        return False
    return bool(np.array_equal(answer.outputs["y"], X))


async def first_refusal(plane: Inferplane) -> str:
    """Predict until that fails, at most 10 s; the reason."""
    async with asyncio.timeout(10):
        while True:
            try:
                await plane.inference.predict("echo", {"x": X})
            except InferplaneClientError as error:
                return error.reason
            await asyncio.sleep(0.1)


async def until_predicts(plane: Inferplane, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not await predicts(plane):  # noqa: ASYNC110 - the other side is another process
            await asyncio.sleep(0.05)


def all_are(up: Up, names: dict[str, list[str]], status: int) -> bool:
    return all(up.status(service, name) == status for service, listed in names.items() for name in listed)


@contextmanager
def watching(up: Up) -> Iterator[dict[str, list[int]]]:
    """The status changes of every service, as grpc.health.v1 Watch tells them."""
    changes: dict[str, list[int]] = {}
    with ExitStack() as stack:
        for service, names in {**SERVICES, "inference": [*SERVICES["inference"], *DATA_PLANE]}.items():
            channel = stack.enter_context(grpc.insecure_channel(up.endpoints[service]))
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for name in names:
                changes[name] = []
                stream = stub.Watch(health_pb2.HealthCheckRequest(service=name))
                assert next(stream).status == SERVING
                stack.callback(stream.cancel)
                threading.Thread(target=collect, args=(stream, changes[name]), daemon=True).start()
        yield changes


def collect(stream: Any, statuses: list[int]) -> None:
    with suppress(grpc.RpcError):
        statuses.extend(answer.status for answer in stream)


async def until_counted(plane: Inferplane, calls: int) -> None:
    async with asyncio.timeout(10):
        while sum(version.call_count for version in await plane.reporting.metrics("echo")) < calls:  # noqa: ASYNC110 - the other side is another process
            await asyncio.sleep(0.05)


def tritons(up: Up) -> list[psutil.Process]:
    """Triton's process: one, or none while it is started again."""
    children = psutil.Process(up.process.pid).children()
    return [child for child in children if child.name() == "tritonserver" and child.status() != psutil.STATUS_ZOMBIE]


async def test_killing_triton_stops_inference_alone_and_both_recover(own_up: Up, tmp_path: Path) -> None:
    """Triton is started again within a fraction of a second, so each service's health is watched, not polled."""
    up = own_up
    async with up.admin() as plane:
        await deploy(plane, tmp_path)
        (triton,) = tritons(up)
        with watching(up) as changes:
            triton.kill()
            await asyncio.to_thread(wait_for, lambda: all(changes[name] for name in DATA_PLANE), 5)
            await asyncio.to_thread(wait_for, lambda: all_are(up, {"inference": DATA_PLANE}, SERVING), 5)
        assert all(changes[name][0] == NOT_SERVING for name in DATA_PLANE)
        assert not any(changes[name] for listed in SERVICES.values() for name in listed)
        await until_predicts(plane, 5)


async def test_a_model_whose_process_was_killed_is_served_again(own_up: Up, tmp_path: Path) -> None:
    async with own_up.admin() as plane:
        await deploy(plane, tmp_path)
        (triton,) = tritons(own_up)
        (stub,) = triton.children()
        stub.kill()
        await asyncio.to_thread(wait_for, lambda: [p.pid for p in triton.children()] not in ([], [stub.pid]), 60)
        await until_predicts(plane, 30)
        assert tritons(own_up) == [triton]


async def test_a_stream_that_loses_triton_says_so_and_goes_on_when_it_is_back(own_up: Up, tmp_path: Path) -> None:
    up = own_up
    async with up.admin() as plane:
        await deploy(plane, tmp_path)
        metadata = [("authorization", f"Bearer {await plane.auth.access_token()}")]
        request = service_pb2.ModelInferRequest(model_name="echo")
        request.inputs.add(name="x", datatype="FP32", shape=[4])
        request.raw_input_contents.append(X.tobytes())
        async with grpc.aio.insecure_channel(up.endpoints["inference"]) as channel:
            stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(cast("Any", channel))
            stream = stub.ModelStreamInfer(metadata=metadata)

            async def answer() -> str:
                await stream.write(request)
                error: str = (await stream.read()).error_message
                return error

            assert await answer() == ""
            tritons(up)[0].kill()
            errors = {await answer()}
            async with asyncio.timeout(60):
                while error := await answer():
                    errors.add(error)
            assert any("a dependency does not answer" in error for error in errors)
            stream.cancel()


async def test_a_model_that_cannot_be_loaded_takes_nothing_else_down(own_up: Up, tmp_path: Path) -> None:
    """Its file is well formed, so only Triton finds out that its nodes do not fit together."""
    up = own_up
    async with up.admin() as plane:
        await deploy(plane, tmp_path)
        node = helper.make_node("Reshape", ["x", "s"], ["y"])
        shape = helper.make_tensor("s", TensorProto.INT64, [1], [7])
        path = tmp_path / "odd.onnx"
        built = model([node], [tensor("x", "FP32", [4])], [tensor("y", "FP32", [7])], [shape])
        path.write_bytes(built.SerializeToString())
        await plane.artifact.push("odd", path)
        with watching(up) as changes:
            with suppress(InferplaneClientError):
                await plane.inference.deploy("odd", timeout=20)
            assert await predicts(plane)
            assert not any(changes.values())


async def test_a_hung_triton_stops_inference_alone_and_both_recover(own_up: Up, tmp_path: Path) -> None:
    up = own_up
    async with up.admin() as plane:
        await deploy(plane, tmp_path)
        (triton,) = tritons(up)
        triton.suspend()
        await asyncio.to_thread(wait_for, lambda: all_are(up, {"inference": DATA_PLANE}, NOT_SERVING), 5)
        assert all_are(up, SERVICES, SERVING)
        triton.resume()
        await asyncio.to_thread(wait_for, lambda: all_are(up, {"inference": DATA_PLANE}, SERVING), 5)
        await until_predicts(plane, 5)


async def test_a_triton_that_hangs_for_good_is_replaced_and_serves_its_models_again(own_up: Up, tmp_path: Path) -> None:
    up = own_up
    async with up.admin() as plane:
        await deploy(plane, tmp_path)
        (hung,) = tritons(up)
        old = [hung, *hung.children()]
        hung.suspend()
        await asyncio.to_thread(wait_for, lambda: [triton.pid for triton in tritons(up)] not in ([], [hung.pid]), 40)
        await until_predicts(plane, 30)
        await assert_gone(old)


async def test_a_hung_postgres_leaves_the_data_plane_and_all_recover(own_up: Up, tmp_path: Path) -> None:
    up = own_up
    postmaster = psutil.Process(up.pids["postgres"])
    async with up.admin() as plane:
        await deploy(plane, tmp_path)
        processes = [postmaster, *postmaster.children()]
        for process in processes:
            process.suspend()
        try:
            await asyncio.to_thread(wait_for, lambda: all_are(up, SERVICES, NOT_SERVING), 5)
            assert all_are(up, {"inference": ["", *DATA_PLANE]}, SERVING)
            assert await predicts(plane)
        finally:
            for process in processes:
                process.resume()
        await asyncio.to_thread(wait_for, lambda: all_are(up, SERVICES, SERVING), 5)
        await plane.artifact.get_model("echo")


async def test_killing_the_embedded_postgres_loses_nothing_and_recovers(own_up: Up, tmp_path: Path) -> None:
    up = own_up
    async with up.admin() as plane:
        await deploy(plane, tmp_path)
        os.kill(up.pids["postgres"], signal.SIGKILL)
        assert await predicts(plane)
        await asyncio.to_thread(wait_for, lambda: all_are(up, SERVICES, SERVING), 5)
        assert (await plane.artifact.get_version("echo:1")).digest


async def test_without_its_database_the_data_plane_goes_on_alone(tmp_path: Path, loop_thread: LoopThread) -> None:
    postgres = EmbeddedPostgres(tmp_path / "pg")
    loop_thread.run(postgres.start())
    environment = {"INFERPLANE_DATABASE_URL": postgres.owner_url}
    try:
        with running_up(tmp_path, environment=environment) as up:
            async with up.admin() as plane:
                await deploy(plane, tmp_path)
                assert await predicts(plane)
                loop_thread.run(postgres.stop())
                await asyncio.to_thread(wait_for, lambda: all_are(up, SERVICES, NOT_SERVING), 5)
                assert all_are(up, {"inference": ["", *DATA_PLANE]}, SERVING)
                assert await predicts(plane)
                with pytest.raises(InferplaneClientError, match="dependency") as failed:
                    await plane.artifact.get_model("echo", timeout=5)
                assert failed.value.reason == "DEPENDENCY_UNAVAILABLE"
                assert {get(address, "/healthz") for address in up.endpoints["metrics"].values()} == {200}
                loop_thread.run(postgres.start())
                await asyncio.to_thread(wait_for, lambda: all_are(up, SERVICES, SERVING), 5)
                await plane.artifact.get_model("echo")
    finally:
        loop_thread.run(postgres.stop())


async def test_the_data_plane_refuses_once_its_policy_is_too_old(tmp_path: Path, loop_thread: LoopThread) -> None:
    postgres = EmbeddedPostgres(tmp_path / "pg")
    loop_thread.run(postgres.start())
    environment = {"INFERPLANE_DATABASE_URL": postgres.owner_url, "INFERPLANE_POLICY_MAX_STALENESS": "3"}
    try:
        with running_up(tmp_path, environment=environment) as up:
            async with up.admin() as plane:
                await deploy(plane, tmp_path)
                loop_thread.run(postgres.stop())
                assert await predicts(plane)
                assert await first_refusal(plane) == "POLICY_STALE"
                loop_thread.run(postgres.start())
                await until_predicts(plane, 5)
    finally:
        loop_thread.run(postgres.stop())


async def test_predictions_made_without_the_database_are_recorded_when_it_is_back(
    tmp_path: Path, loop_thread: LoopThread
) -> None:
    postgres = EmbeddedPostgres(tmp_path / "pg")
    loop_thread.run(postgres.start())
    try:
        with running_up(tmp_path, environment={"INFERPLANE_DATABASE_URL": postgres.owner_url}) as up:
            async with up.admin() as plane:
                await deploy(plane, tmp_path)
                loop_thread.run(postgres.stop())
                for _ in range(20):
                    assert await predicts(plane)
                loop_thread.run(postgres.start())
                await asyncio.to_thread(wait_for, lambda: all_are(up, SERVICES, SERVING), 5)
                await until_counted(plane, 20)
    finally:
        loop_thread.run(postgres.stop())


def test_a_hung_worker_is_replaced_and_fails_no_later_call(own_up: Up) -> None:
    up = own_up
    hung = up.pids["auth"]
    os.kill(hung, signal.SIGSTOP)
    wait_for(lambda: not psutil.pid_exists(hung), 15)
    wait_for(lambda: up.status("auth", "") == SERVING, 5)
    with grpc.insecure_channel(up.endpoints["auth"]) as channel:
        stub: Any = auth_service_pb2_grpc.AuthServiceStub(cast("Any", channel))
        for _ in range(50):
            stub.GetJwks(auth_service_pb2.GetJwksRequest(), timeout=5)


@pytest.mark.parametrize("victim", VICTIMS)
async def test_what_was_acknowledged_survives_kills_of_a_service(own_up: Up, tmp_path: Path, victim: str) -> None:
    """Of Auth, Artifact and the services around them, twice each, while users and models are being written."""
    async with own_up.admin() as plane:
        await deploy(plane, tmp_path)
    acknowledged = await survive(own_up, tmp_path, [victim] * 2, seed=VICTIMS.index(victim))
    print(f"{len(acknowledged.users)} users, {len(acknowledged.versions)} versions; failed: {acknowledged.failures}")
    async with own_up.admin() as plane:
        await until_predicts(plane, 10)


@pytest.mark.soak
async def test_what_was_acknowledged_survives_a_hundred_kills(own_up: Up, tmp_path: Path) -> None:
    """The same, of whichever service."""
    victims = random.Random(1).choices(VICTIMS, k=100)  # noqa: S311 - whom to kill is no secret
    acknowledged = await survive(own_up, tmp_path, victims, seed=2)
    print(
        f"{len(acknowledged.users)} users, {len(acknowledged.versions)} versions, {len(acknowledged.failures)} failures"
    )


async def test_kill_9_of_up_leaves_nothing_running_and_loses_nothing(tmp_path: Path) -> None:
    with running_up(tmp_path) as up:
        async with up.admin() as plane:
            await deploy(plane, tmp_path)
        family = psutil.Process(up.process.pid).children(recursive=True)
        up.process.kill()
        up.process.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, 30)
        assert not alive
        (tmp_path / "ready.json").unlink()
    with running_up(tmp_path) as again:
        async with again.admin() as plane:
            await until_predicts(plane, 10)
