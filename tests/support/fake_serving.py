"""The inference and reporting services in memory, and all four behind one port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from inferplane.artifact.v1 import artifact_service_pb2_grpc, model_registry_service_pb2_grpc
from inferplane.auth.v1 import auth_service_pb2_grpc, identity_service_pb2_grpc
from inferplane.client.endpoints import Endpoints
from inferplane.inference.v1 import (
    deployment_service_pb2,
    deployment_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
)
from inferplane.inference.v1.deployment_pb2 import Deployment, Target
from inferplane.inference.v1.tensor_pb2 import Tensor
from inferplane.reporting.v1 import reporting_service_pb2, reporting_service_pb2_grpc
from inferplane.reporting.v1.report_pb2 import VersionMetrics, VersionQuality
from tests.support.fake_services import PREDICTION_ID, SIGNATURE, FakeArtifact, FakeAuth, Fakes, Fault, fail


class FakeInference(
    inference_service_pb2_grpc.InferenceServiceServicer, deployment_service_pb2_grpc.DeploymentServiceServicer
):
    """Deployments that go through the states of `states`; predictions answer `outputs`, or their inputs."""

    def __init__(self, fakes: Fakes) -> None:
        self.fakes = fakes
        self.deployments: dict[str, Deployment] = {}
        self.states = [Deployment.STATE_LOADING, Deployment.STATE_READY]
        self.messages = {Deployment.STATE_FAILED: "no such operator", Deployment.STATE_LOADING: "waits for Triton"}
        self.incoming_state = Deployment.STATE_LOADING
        self.outputs: list[Tensor] = []
        self.requests: list[inference_service_pb2.PredictRequest] = []

    async def CreateDeployment(
        self, request: deployment_service_pb2.CreateDeploymentRequest, context: Any
    ) -> Deployment:
        await self.fakes.enter(context, "CreateDeployment")
        name = f"deployments/{request.deployment_id}"
        if name in self.deployments:
            await fail(context, Fault(grpc.StatusCode.ALREADY_EXISTS, "DEPLOYMENT_EXISTS"))
        primary = Target(role=Target.ROLE_PRIMARY, model_version=request.model_version, signature=SIGNATURE)
        self.deployments[name] = Deployment(name=name, targets=[primary], state=Deployment.STATE_LOADING)
        return self.deployments[name]

    async def UpdateDeployment(
        self, request: deployment_service_pb2.UpdateDeploymentRequest, context: Any
    ) -> Deployment:
        await self.fakes.enter(context, "UpdateDeployment")
        deployment = self.deployments[request.deployment.name]
        deployment.targets.add(
            role=Target.ROLE_INCOMING,
            model_version=request.deployment.targets[0].model_version,
            signature=SIGNATURE,
            state=self.incoming_state,
            state_message="no such operator" if self.incoming_state == Deployment.STATE_FAILED else "",
        )
        return deployment

    async def GetDeployment(self, request: deployment_service_pb2.GetDeploymentRequest, context: Any) -> Deployment:
        await self.fakes.enter(context, "GetDeployment")
        if request.name not in self.deployments:
            await fail(context, Fault(grpc.StatusCode.NOT_FOUND, "DEPLOYMENT_NOT_FOUND"))
        deployment = self.deployments[request.name]
        if len(deployment.targets) > 1 and self.incoming_state != Deployment.STATE_FAILED:
            del deployment.targets[0]
            deployment.targets[0].role = Target.ROLE_PRIMARY
        deployment.state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        deployment.state_message = self.messages.get(deployment.state, "")
        return deployment

    async def ListDeployments(
        self, request: deployment_service_pb2.ListDeploymentsRequest, context: Any
    ) -> deployment_service_pb2.ListDeploymentsResponse:
        await self.fakes.enter(context, "ListDeployments")
        return deployment_service_pb2.ListDeploymentsResponse(deployments=self.deployments.values())

    async def DeleteDeployment(
        self, request: deployment_service_pb2.DeleteDeploymentRequest, context: Any
    ) -> deployment_service_pb2.DeleteDeploymentResponse:
        await self.fakes.enter(context, "DeleteDeployment")
        if self.deployments.pop(request.name, None) is None:
            await fail(context, Fault(grpc.StatusCode.NOT_FOUND, "DEPLOYMENT_NOT_FOUND"))
        return deployment_service_pb2.DeleteDeploymentResponse()

    async def Predict(
        self, request: inference_service_pb2.PredictRequest, context: Any
    ) -> inference_service_pb2.PredictResponse:
        await self.fakes.enter(context, "Predict")
        self.requests.append(request)
        return inference_service_pb2.PredictResponse(
            prediction_id=PREDICTION_ID,
            model_version="models/digits/versions/1",
            digest="sha256:" + "0" * 64,
            outputs=self.outputs or request.inputs,
        )


class FakeReporting(reporting_service_pb2_grpc.ReportingServiceServicer):
    """Keeps feedback and answers fixed reports."""

    def __init__(self, fakes: Fakes) -> None:
        self.fakes = fakes
        self.feedback: list[reporting_service_pb2.SubmitFeedbackRequest] = []
        self.queries: list[reporting_service_pb2.QueryMetricsRequest] = []
        self.metrics: list[VersionMetrics] = []
        self.quality: list[VersionQuality] = []

    async def IngestPredictions(
        self, request: reporting_service_pb2.IngestPredictionsRequest, context: Any
    ) -> reporting_service_pb2.IngestPredictionsResponse:
        raise AssertionError("clients do not ingest")

    async def SubmitFeedback(
        self, request: reporting_service_pb2.SubmitFeedbackRequest, context: Any
    ) -> reporting_service_pb2.SubmitFeedbackResponse:
        await self.fakes.enter(context, "SubmitFeedback")
        self.feedback.append(request)
        return reporting_service_pb2.SubmitFeedbackResponse(stored_count=len(request.feedback))

    async def QueryMetrics(
        self, request: reporting_service_pb2.QueryMetricsRequest, context: Any
    ) -> reporting_service_pb2.QueryMetricsResponse:
        await self.fakes.enter(context, "QueryMetrics")
        self.queries.append(request)
        return reporting_service_pb2.QueryMetricsResponse(versions=self.metrics)

    async def GetQualityReport(
        self, request: reporting_service_pb2.GetQualityReportRequest, context: Any
    ) -> reporting_service_pb2.GetQualityReportResponse:
        await self.fakes.enter(context, "GetQualityReport")
        return reporting_service_pb2.GetQualityReportResponse(versions=self.quality)


class FakeMesh:
    """All four services; `fakes` holds what they share, `endpoints` says where they are."""

    def __init__(self) -> None:
        self.fakes = Fakes()
        self.auth = FakeAuth(self.fakes)
        self.artifact = FakeArtifact(self.fakes)
        self.inference = FakeInference(self.fakes)
        self.reporting = FakeReporting(self.fakes)
        self.endpoints = Endpoints("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1")

    def fault(self, method: str, code: grpc.StatusCode, reason: str = "", **details: Any) -> None:
        """Let the method fail."""
        self.fakes.faults[method] = Fault(code, reason, **details)


@asynccontextmanager
async def fake_mesh() -> AsyncIterator[FakeMesh]:
    """Serve a mesh on a port of the kernel's choice."""
    mesh, server = FakeMesh(), grpc.aio.server()
    auth_service_pb2_grpc.add_AuthServiceServicer_to_server(mesh.auth, server)
    identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(mesh.auth, server)
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(mesh.artifact, server)
    model_registry_service_pb2_grpc.add_ModelRegistryServiceServicer_to_server(mesh.artifact, server)
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(mesh.inference, server)
    deployment_service_pb2_grpc.add_DeploymentServiceServicer_to_server(mesh.inference, server)
    reporting_service_pb2_grpc.add_ReportingServiceServicer_to_server(mesh.reporting, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    mesh.endpoints = Endpoints(target, target, target, target)
    await server.start()
    try:
        yield mesh
    finally:
        await server.stop(0)
