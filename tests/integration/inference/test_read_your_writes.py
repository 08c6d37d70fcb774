"""What one call is told of a deployment holds for the next, though the routes take a while to be read again."""

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import URL
from tritonclient.grpc import service_pb2

from inferplane.inference.v1 import deployment_service_pb2 as pb
from inferplane.inference.v1.deployment_pb2 import Deployment
from inferplane.server.access.routes import read_routes
from inferplane.server.settings import ServiceName, Settings
from tests.conftest import execute
from tests.support.mesh import reason
from tests.support.paths import INFER
from tests.support.serving import Serving, constant, serving, until_async

SLOW = 0.3
"""Seconds that the routes take: long enough for many calls, and less than they are waited for."""


@pytest.fixture
async def slow(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Serving]:
    """`m` has a version; whoever follows the routes sees a change of them late."""
    async with serving(settings, tmp_path / "triton") as running:
        await running.push("m", constant(1))

        async def read_late(*arguments: Any) -> Any:
            found = await read_routes(*arguments)
            await asyncio.sleep(SLOW)
            return found

        monkeypatch.setattr("inferplane.server.access.source.read_routes", read_late)
        yield running


async def infer(served: Serving, version: str = "") -> Any:
    """The answer; an error where `m` is not of that version, by the route."""
    request = service_pb2.ModelInferRequest(
        model_name="m", model_version=version, raw_input_contents=[struct.pack("<f", 1)]
    )
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    call: Any = served.mesh.channels[ServiceName.INFERENCE].unary_unary(
        INFER, service_pb2.ModelInferRequest.SerializeToString, service_pb2.ModelInferResponse.FromString
    )
    return await call(request, metadata=served.metadata)


async def test_what_is_told_to_be_ready_answers(slow: Serving) -> None:
    await slow.create("m", "models/m/versions/1")
    await slow.until_serves("m", "models/m/versions/1")
    assert (await infer(slow)).model_version == "1"


async def test_what_is_listed_as_ready_answers(slow: Serving) -> None:
    await slow.create("m", "models/m/versions/1")

    async def ready() -> bool:
        answer = await slow.deployments.ListDeployments(pb.ListDeploymentsRequest(), metadata=slow.metadata)
        return [deployment.state for deployment in answer.deployments] == [Deployment.STATE_READY]

    await until_async(ready, 60)
    assert (await infer(slow)).model_version == "1"


async def test_what_was_replaced_answers_as_the_one_that_it_is_told_to_be(slow: Serving) -> None:
    await slow.push("m", constant(2))
    await slow.create("m", "models/m/versions/1")
    await slow.until_serves("m", "models/m/versions/1")
    await slow.replace("m", "models/m/versions/2")
    await slow.until_serves("m", "models/m/versions/2")
    assert (await infer(slow, version="2")).model_version == "2"


async def test_what_was_created_is_not_ready_but_known(slow: Serving) -> None:
    await slow.create("m", "models/m/versions/1")
    assert await reason(infer(slow)) == (grpc.StatusCode.UNAVAILABLE, "DEPLOYMENT_NOT_READY")


async def test_of_two_who_create_it_at_once_both_are_answered_when_it_is_known(slow: Serving) -> None:
    both = [asyncio.ensure_future(slow.create("m", "models/m/versions/1")) for _ in range(2)]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    assert await reason(infer(slow)) == (grpc.StatusCode.UNAVAILABLE, "DEPLOYMENT_NOT_READY")
    errors = [
        error for error in await asyncio.gather(*both, return_exceptions=True) if not isinstance(error, Deployment)
    ]
    assert [getattr(error, "code", str)() for error in errors] == [grpc.StatusCode.ALREADY_EXISTS]


async def test_what_was_deleted_is_not_found(slow: Serving) -> None:
    await slow.create("m", "models/m/versions/1")
    await slow.until_serves("m", "models/m/versions/1")
    await slow.deployments.DeleteDeployment(pb.DeleteDeploymentRequest(name="deployments/m"), metadata=slow.metadata)
    assert await reason(infer(slow)) == (grpc.StatusCode.NOT_FOUND, "DEPLOYMENT_NOT_FOUND")


async def test_what_another_has_deleted_is_neither_told_nor_answers(slow: Serving, database_url: URL) -> None:
    await slow.create("m", "models/m/versions/1")
    await slow.until_serves("m", "models/m/versions/1")
    await execute(database_url, "UPDATE inference.deployment SET deleted_at = now()")
    gone = (grpc.StatusCode.NOT_FOUND, "DEPLOYMENT_NOT_FOUND")
    assert await reason(slow.get("m")) == gone
    assert await reason(infer(slow)) == gone
