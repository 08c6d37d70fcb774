"""A version is replaced without an outage, by the rules of the contract."""

import asyncio
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tritonclient.grpc import service_pb2

from inferplane.inference.v1 import deployment_service_pb2 as pb
from inferplane.inference.v1.deployment_pb2 import Deployment, Target
from inferplane.server.inference import deployments
from inferplane.server.settings import ServiceName, Settings
from tests.support.mesh import Metadata, failure, reason
from tests.support.onnx_models import identity
from tests.support.paths import INFER
from tests.support.serving import Serving, constant, serving

X = 1.0


@pytest.fixture
async def served(settings: Settings, tmp_path: Path) -> AsyncIterator[Serving]:
    """`m` serves version 1, which adds 1; version 2 adds 2."""
    async with serving(settings, tmp_path / "triton") as running:
        for value in (1, 2):
            await running.push("m", constant(value))
        await running.create("m", "models/m/versions/1")
        await running.until_serves("m", "models/m/versions/1")
        yield running


class Callers:
    """Threads that call a deployment until they are told to stop."""

    def __init__(self, address: str, metadata: Metadata, name: str) -> None:
        self.stop = threading.Event()
        self.failures: list[str] = []
        self.answers: list[tuple[str, float]] = []
        self._threads = [threading.Thread(target=self._call, args=(address, metadata, name)) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _call(self, address: str, metadata: Metadata, name: str) -> None:
        request = service_pb2.ModelInferRequest(model_name=name)
        request.inputs.add(name="x", datatype="FP32", shape=[1])
        request.raw_input_contents.append(struct.pack("<f", X))
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer: Any = channel.unary_unary(
                INFER,
                service_pb2.ModelInferRequest.SerializeToString,
                service_pb2.ModelInferResponse.FromString,
            )
            while not self.stop.is_set():
                try:
                    answer = infer(request, metadata=metadata, timeout=30)
                except grpc.RpcError as error:
                    self.failures.append(str(error))
                else:
                    self.answers.append((answer.model_version, *struct.unpack("<f", answer.raw_output_contents[0])))

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()


@asynccontextmanager
async def calling(served: Serving, name: str = "m") -> AsyncIterator[Callers]:
    callers = Callers(served.mesh.settings.endpoints[ServiceName.INFERENCE], served.metadata, name)
    try:
        yield callers
    finally:
        # In a thread: the services that still answer run on this one's loop.
        await asyncio.to_thread(callers.end)


async def test_calls_go_on_through_replacements_and_each_answer_is_of_the_version_that_it_names(
    served: Serving,
) -> None:
    link = Triton(served)
    async with calling(served) as callers:
        for swap in range(10):
            version = f"models/m/versions/{2 - swap % 2}"
            await served.replace("m", version)
            ready = await served.until_serves("m", version)
            assert await link.digest("m") == ready.targets[0].digest
    assert callers.failures == []
    assert set(callers.answers) == {("1", X + 1), ("2", X + 2)}
    print(f"{len(callers.answers)} calls through 10 replacements")


async def test_after_a_triton_restart_in_the_middle_the_right_version_is_back(served: Serving) -> None:
    await served.replace("m", "models/m/versions/2")
    port = int(served.triton.endpoint.rpartition(":")[2])
    await served.triton.stop()
    await served.triton.start(port=port)
    ready = await served.until_serves("m", "models/m/versions/2")
    assert await Triton(served).digest("m") == ready.targets[0].digest


async def test_a_replacement_that_cannot_be_loaded_changes_nothing_and_says_why(served: Serving) -> None:
    proto = identity()
    proto.graph.node[0].domain = "com.example"
    proto.opset_import.add(domain="com.example", version=1)
    broken = await served.push("m", proto.SerializeToString())
    async with calling(served) as callers:
        asked = await served.replace("m", broken)
        assert [target.role for target in asked.targets] == [Target.ROLE_PRIMARY, Target.ROLE_INCOMING]
        failed = await served.until("m", lambda found: found.targets[-1].state == Deployment.STATE_FAILED)
    assert (failed.state, failed.targets[0].model_version) == (Deployment.STATE_READY, "models/m/versions/1")
    assert "com.example" in failed.targets[1].state_message
    assert callers.failures == []
    assert {version for version, _ in callers.answers} == {"1"}


async def test_an_alias_is_resolved_when_it_is_asked_for(served: Serving) -> None:
    alias = await served.alias("models/m/aliases/production", "models/m/versions/2")
    asked = await served.replace("m", alias, update_mask=FieldMask(paths=["targets"]))
    assert asked.targets[1].model_version == "models/m/versions/2"


async def test_a_retry_gets_the_first_answer_even_where_the_version_is_known_no_more(served: Serving) -> None:
    alias = await served.alias("models/m/aliases/production", "models/m/versions/2")
    first = await served.replace("m", alias, idempotency_key="once")
    artifact = served.mesh.services[ServiceName.ARTIFACT]
    await artifact.server.stop()
    assert await served.replace("m", alias, idempotency_key="once") == first
    assert (await failure(served.replace("m", alias))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_version_of_another_model_is_refused(served: Serving) -> None:
    other = await served.push("other", constant(3))
    error = await failure(served.replace("m", other))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "deployment.targets[0].model_version must be a version of models/m" in (error.details() or "")


async def test_what_is_not_deployed_cannot_be_replaced(served: Serving) -> None:
    refused = await reason(served.replace("absent", "models/m/versions/1"))
    assert refused == (grpc.StatusCode.NOT_FOUND, "DEPLOYMENT_NOT_FOUND")


def update(*targets: Target, mask: str = "targets") -> pb.UpdateDeploymentRequest:
    deployment = Deployment(name="deployments/m", targets=targets)
    return pb.UpdateDeploymentRequest(deployment=deployment, update_mask=FieldMask(paths=[mask]))


VALID = Target(model_version="models/m/versions/1")
INVALID = [
    ("deployment.targets.model_version", update()),
    ("deployment.targets", update(VALID, VALID)),
    ("deployment.targets[0].role", update(Target(model_version=VALID.model_version, role=Target.ROLE_INCOMING))),
    ("deployment.targets[0].model_version", update(Target(model_version="m"))),
    ("update_mask", update(VALID, mask="creator")),
]


async def test_a_request_that_is_not_valid_names_its_field(served: Serving) -> None:
    for field, request in INVALID:
        error = await failure(served.deployments.UpdateDeployment(request, metadata=served.metadata))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"a field is invalid: {field} " in (error.details() or "")


async def test_replacing_needs_the_role_on_the_deployment_and_on_the_model(served: Serving) -> None:
    await served.create("blue", "models/m/versions/1")
    only_deployment = await served.mesh.user("dora", deployer="blue")
    only_model = await served.mesh.user("mona", deployer="m")
    both = await served.mesh.user("bea", deployer="blue")
    await served.mesh.grant("bea", "deployer", "m")
    for metadata in (only_deployment, only_model):
        refused = await reason(served.replace("blue", "models/m/versions/2", metadata))
        assert refused == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
    await served.replace("blue", "models/m/versions/2", both)


async def test_a_model_that_cannot_travel_is_refused_at_once(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the true limit, a test of the request's head tells; a file of 2 GiB would take a minute to push."""
    monkeypatch.setattr(deployments, "largest_model", lambda *_arguments: 10)
    refused = (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_TOO_LARGE_TO_LOAD")
    assert await reason(served.create("big", "models/m/versions/1")) == refused
    assert await reason(served.replace("m", "models/m/versions/2")) == refused


class Triton:
    """What Triton itself says."""

    def __init__(self, served: Serving) -> None:
        self.channel = grpc.aio.insecure_channel(served.triton.endpoint)
        self.header = served.triton.header

    async def digest(self, name: str) -> str:
        ask: Any = self.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelConfig",
            service_pb2.ModelConfigRequest.SerializeToString,
            service_pb2.ModelConfigResponse.FromString,
        )
        answer = await ask(service_pb2.ModelConfigRequest(name=name), metadata=(self.header,))
        return str(answer.config.parameters["inferplane_digest"].string_value)
