"""Deployments and predictions."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from inferplane.artifact.v1.model_registry_service_pb2_grpc import ModelRegistryServiceStub
from inferplane.client.artifact import newest_version
from inferplane.client.calls import new_key, unary, walk
from inferplane.client.errors import AlreadyExists, DeadlineExceeded, DeploymentFailed
from inferplane.client.names import ModelRef, model_id
from inferplane.client.tensors import Array, decode, encode
from inferplane.inference.v1 import (
    deployment_service_pb2,
    deployment_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
)
from inferplane.inference.v1.deployment_pb2 import Deployment, Target

_FIRST_POLL = 0.05
_LAST_POLL = 1.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer: its id, by which feedback names it, and the version and bytes that gave it.

    `outputs` are arrays by name, of the shapes that the model gave them.
    """

    id: str
    model_version: str
    digest: str
    outputs: dict[str, Array]


class InferenceClient:
    """The inference service; `service` and `deployments` are the generated stubs.

    Every method raises InferplaneClientError; `timeout` is in seconds, None for the client's default.
    """

    def __init__(self, channel: grpc.aio.Channel, registry: ModelRegistryServiceStub) -> None:
        self.service = inference_service_pb2_grpc.InferenceServiceStub(channel)
        self.deployments = deployment_service_pb2_grpc.DeploymentServiceStub(channel)
        self._registry = registry

    async def deploy(
        self, model_ref: str, *, name: str | None = None, wait: bool = True, timeout: float = 60.0
    ) -> Deployment:
        """Serve `NAME`, `NAME:VERSION` or `NAME@ALIAS` under `name`, by default the model's own.

        A bare name means the newest version. Where the name serves another version of the model already, that one
        answers until the new one is loaded. Waits until the deployment answers with the version, at most `timeout`
        seconds, unless told not to. Raises DeploymentFailed, also where somebody else asked for another version
        meanwhile, DeadlineExceeded, FailedPrecondition for a model that is too large, or InvalidArgument where the
        name serves another model.
        """
        ref = ModelRef.parse(model_ref)
        deployment_id = model_id(ref.model if name is None else name, "deployment")
        version = ref.resource or (await newest_version(self._registry, ref.parent)).name
        request = deployment_service_pb2.CreateDeploymentRequest(
            deployment_id=deployment_id, model_version=version, idempotency_key=new_key()
        )
        try:
            deployment = await unary(self.deployments.CreateDeployment, request)
        except AlreadyExists:
            deployment = await self.replace(deployment_id, version)
        if not wait:
            return deployment
        # The one asked for is the last that is to come, or serves already.
        wanted = deployment.targets[-1].model_version
        ready = await self.wait_ready(deployment_id, timeout=timeout)
        if (serves := ready.targets[0].model_version) != wanted:
            raise DeploymentFailed(
                f"{ready.name} serves {serves}, which was asked for after {wanted}",
                reason="DEPLOYMENT_SUPERSEDED",
                metadata={"deployment": ready.name, "serves": serves},
            )
        return ready

    async def replace(self, name: str, model_version: str, *, timeout: float | None = None) -> Deployment:
        """Let a deployment serve another version of its model, `models/{model}/versions/{version}` or an alias.

        Answers at once; see `wait_ready`. Raises NotFound, FailedPrecondition or InvalidArgument.
        """
        wanted = Deployment(name=_deployment(name), targets=[Target(model_version=model_version)])
        request = deployment_service_pb2.UpdateDeploymentRequest(
            deployment=wanted, update_mask=FieldMask(paths=["targets"]), idempotency_key=new_key()
        )
        return await unary(self.deployments.UpdateDeployment, request, timeout)

    async def wait_ready(self, name: str, *, timeout: float = 60.0) -> Deployment:
        """Ask until the deployment is READY and not being replaced any more.

        Raises DeploymentFailed or, after `timeout` seconds, DeadlineExceeded.
        """
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + timeout, _FIRST_POLL
        while True:
            deployment = await self.get(name)
            incoming = [target for target in deployment.targets if target.role == Target.ROLE_INCOMING]
            if deployment.state == Deployment.STATE_READY and not incoming:
                return deployment
            _raise_if_failed(deployment, incoming)
            left = deadline - loop.time()
            if left <= 0:
                raise DeadlineExceeded(
                    f"{deployment.name} was still loading after {timeout:g} s; it goes on loading"
                    + (f" ({deployment.state_message})" if deployment.state_message else ""),
                    reason="DEPLOYMENT_LOADING",
                    metadata={"deployment": deployment.name},
                )
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, _LAST_POLL)

    async def get(self, name: str, *, timeout: float | None = None) -> Deployment:
        """Give a deployment; raises NotFound."""
        request = deployment_service_pb2.GetDeploymentRequest(name=_deployment(name))
        return await unary(self.deployments.GetDeployment, request, timeout)

    def list_deployments(self, *, page_size: int = 0, timeout: float | None = None) -> AsyncIterator[Deployment]:
        """Give all deployments that the caller may see, by name."""
        return walk(
            self.deployments.ListDeployments,
            lambda token: deployment_service_pb2.ListDeploymentsRequest(page_size=page_size, page_token=token),
            lambda page: page.deployments,
            timeout,
        )

    list = list_deployments

    async def undeploy(self, name: str, *, timeout: float | None = None) -> None:
        """Stop serving; calls that were accepted finish. Raises NotFound."""
        request = deployment_service_pb2.DeleteDeploymentRequest(name=_deployment(name), idempotency_key=new_key())
        await unary(self.deployments.DeleteDeployment, request, timeout)

    async def predict(
        self,
        deployment: str,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] | None = None,
        client_request_id: str = "",
        timeout: float | None = None,
    ) -> Prediction:
        """Ask for one prediction: `inputs` by name, in the shapes and types of the deployment's signature.

        `outputs` names those wanted, None for all. Never repeated by itself, since each call is recorded as a
        prediction. Raises InvalidArgument, NotFound, Unavailable or Internal.
        """
        request = inference_service_pb2.PredictRequest(
            deployment=_deployment(deployment),
            inputs=[encode(name, array) for name, array in inputs.items()],
            output_names=outputs or (),
            output_encoding=inference_service_pb2.TENSOR_ENCODING_RAW,
            client_request_id=client_request_id,
        )
        answer = await unary(self.service.Predict, request, timeout)
        return Prediction(
            answer.prediction_id,
            answer.model_version,
            answer.digest,
            {tensor.name: decode(tensor) for tensor in answer.outputs},
        )


def _raise_if_failed(deployment: Deployment, incoming: Sequence[Target]) -> None:
    if deployment.state == Deployment.STATE_FAILED:
        problem, serves = f"could not be loaded: {deployment.state_message}", ""
    elif incoming and incoming[0].state == Deployment.STATE_FAILED:
        serves = deployment.targets[0].model_version
        problem = (
            f"goes on with {serves}, since {incoming[0].model_version} could not be loaded: {incoming[0].state_message}"
        )
    else:
        return
    raise DeploymentFailed(
        f"{deployment.name} {problem}",
        reason="DEPLOYMENT_FAILED",
        metadata={"deployment": deployment.name, "serves": serves},
    )


def _deployment(name: str) -> str:
    return f"deployments/{model_id(name, 'deployment')}"
