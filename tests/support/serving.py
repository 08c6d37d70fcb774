"""The four services in this process, in front of a real Triton of their own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from pydantic import SecretStr

from inferplane.artifact.v1 import model_registry_service_pb2 as registry_pb
from inferplane.inference.v1 import deployment_service_pb2 as pb
from inferplane.inference.v1.deployment_pb2 import Deployment, Target
from inferplane.inference.v1.deployment_service_pb2_grpc import DeploymentServiceStub
from inferplane.server.embedded.triton import EmbeddedTriton
from inferplane.server.settings import ServiceName, Settings
from tests.support.artifact import Artifacts
from tests.support.mesh import Mesh, Metadata, running_mesh, until
from tests.support.onnx_models import model, tensor


class Serving:
    """A mesh with a Triton, and its administrator's calls."""

    def __init__(self, mesh: Mesh, triton: EmbeddedTriton, metadata: Metadata) -> None:
        self.mesh = mesh
        self.triton = triton
        self.metadata = metadata
        self.deployments: Any = DeploymentServiceStub(mesh.channels[ServiceName.INFERENCE])

    async def push(self, name: str, data: bytes) -> str:
        """Publish a version, of a model that need not exist; its resource name."""
        artifacts = Artifacts(self.mesh.channels[ServiceName.ARTIFACT], self.metadata)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await artifacts.model(name)
        upload = await artifacts.push(data, name)
        version = await artifacts.create_version(upload)
        return str(version.name)

    async def alias(self, name: str, version: str) -> str:
        """Let an alias such as `models/m/aliases/production` mean a version."""
        artifacts = Artifacts(self.mesh.channels[ServiceName.ARTIFACT], self.metadata)
        alias = await artifacts.call("SetAlias", registry_pb.SetAliasRequest(name=name, model_version=version))
        return str(alias.name)

    async def create(self, name: str, version: str, **fields: str) -> Deployment:
        request = pb.CreateDeploymentRequest(deployment_id=name, model_version=version, **fields)
        deployment: Deployment = await self.deployments.CreateDeployment(request, metadata=self.metadata)
        return deployment

    async def replace(self, name: str, version: str, metadata: Metadata | None = None, **fields: Any) -> Deployment:
        wanted = Deployment(name=f"deployments/{name}", targets=[Target(model_version=version)])
        request = pb.UpdateDeploymentRequest(deployment=wanted, **fields)
        deployment: Deployment = await self.deployments.UpdateDeployment(request, metadata=metadata or self.metadata)
        return deployment

    async def get(self, name: str) -> Deployment:
        request = pb.GetDeploymentRequest(name=f"deployments/{name}")
        deployment: Deployment = await self.deployments.GetDeployment(request, metadata=self.metadata)
        return deployment

    async def until(self, name: str, condition: Any, seconds: float = 60) -> Deployment:
        """Ask for the deployment until `condition` holds of it."""
        seen: list[Deployment] = []

        async def ask() -> bool:
            seen[:] = [await self.get(name)]
            return bool(condition(seen[0]))

        await until_async(ask, seconds)
        return seen[0]

    async def until_serves(self, name: str, version: str, seconds: float = 60) -> Deployment:
        """Wait until that version is all that there is to the deployment, and it answers."""
        return await self.until(
            name,
            lambda found: (
                found.state == Deployment.STATE_READY
                and [target.model_version for target in found.targets] == [version]
            ),
            seconds,
        )


async def until_async(condition: Any, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - what is waited for is in another process
            await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(settings: Settings, folder: Path, arguments: Sequence[str] = ()) -> AsyncIterator[Serving]:
    """Start all; `arguments` replace those of Triton that begin alike (up to `=`)."""
    triton = ControlledTriton(folder, arguments)
    await triton.start()
    try:
        name, value = triton.header
        own = {"triton_endpoint": triton.endpoint, "triton_header_name": name, "triton_header_value": SecretStr(value)}
        async with running_mesh(settings.model_copy(update=own), *ServiceName) as mesh:
            yield Serving(mesh, triton, await mesh.login())
    finally:
        await triton.stop()


class ControlledTriton(EmbeddedTriton):
    """An embedded Triton, some of whose arguments are others."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        super().__init__(folder)
        self._other = arguments

    def _arguments(self) -> tuple[str, ...]:
        replaced = tuple(argument.partition("=")[0] for argument in self._other)
        return (*(usual for usual in super()._arguments() if usual.partition("=")[0] not in replaced), *self._other)


def constant(value: float, padding: int = 0) -> bytes:
    """A model that answers x + `value`, and holds `padding` bytes that it does not use."""
    initializers = [onnx.numpy_helper.from_array(np.array([value], dtype=np.float32), "value")]
    if padding:
        noise = np.random.default_rng(7).integers(0, 256, padding, dtype=np.uint8)
        initializers.append(onnx.numpy_helper.from_array(noise, "padding"))
    node = onnx.helper.make_node("Add", ["x", "value"], ["y"])
    proto = model([node], [tensor("x", "FP32", ["N"])], [tensor("y", "FP32", ["N"])], initializers)
    data: bytes = proto.SerializeToString()
    return data


__all__ = ["ControlledTriton", "Serving", "constant", "serving", "until", "until_async"]
