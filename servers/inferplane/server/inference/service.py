"""Inference's RPCs: from message to domain call to message."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from inferplane.common.v1.access_pb2 import Permission
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.inference.v1 import (
    deployment_pb2,
    deployment_service_pb2_grpc,
    inference_service_pb2_grpc,
)
from inferplane.inference.v1 import deployment_service_pb2 as deployment_pb
from inferplane.inference.v1 import inference_service_pb2 as inference_pb
from inferplane.server.access.admission import Admission
from inferplane.server.access.source import PolicySource
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.convert import deployment_message, infer_request, predict_response
from inferplane.server.inference.dataplane.answer import Answer
from inferplane.server.inference.dataplane.forwarder import Forwarder
from inferplane.server.inference.dataplane.unread import UnreadAnswers
from inferplane.server.inference.deployments import Deployment, Deployments, VersionInfo
from inferplane.server.inference.inputs import NamedDeployment, NewDeployment, PredictInput, replacement
from inferplane.server.inference.model_source import ModelSource
from inferplane.server.inference.repository import DeploymentReader, DeploymentRepository
from inferplane.server.rpc.call import current_call
from inferplane.server.rpc.mutations import Mutations
from inferplane.server.rpc.validation import parse
from inferplane.server.storage.database import Database
from inferplane.server.storage.pages import Page, PageTokens

__all__ = ["DeploymentService", "InferenceService"]

AnswerT = TypeVar("AnswerT")


class InferenceService(inference_service_pb2_grpc.InferenceServiceServicer):
    """Typed predictions, by the same way as everybody else's."""

    def __init__(self, forwarder: Forwarder, unread: UnreadAnswers) -> None:
        self._forwarder = forwarder
        self._unread = unread

    async def Predict(self, request: inference_pb.PredictRequest, context: Any) -> inference_pb.PredictResponse:
        call = current_call()
        name = parse(PredictInput, request).deployment

        def decode(answer: Answer) -> inference_pb.PredictResponse:
            response = predict_response(call.request_id, answer, request.output_encoding)
            call.afterwards(partial(self._unread.release, call.principal.subject, len(answer.data)))
            return response

        return await self._forwarder.predict_as(
            call.principal,
            call.request_id,
            name,
            lambda: infer_request(name, request).SerializeToString(),
            decode,
            context.time_remaining(),
        )


class DeploymentService(deployment_service_pb2_grpc.DeploymentServiceServicer):
    """What is served.

    Before anything is told, this process catches up with the tables: so it holds for the next prediction here.
    """

    def __init__(
        self,
        deployments: Deployments,
        source: ModelSource,
        mutations: Mutations,
        database: Database,
        pages: PageTokens,
        admission: Admission,
        policy: PolicySource,
    ) -> None:
        self._deployments = deployments
        self._source = source
        self._mutations = mutations
        self._database = database
        self._pages = pages
        self._admission = admission
        self._policy = policy

    async def CreateDeployment(
        self, request: deployment_pb.CreateDeploymentRequest, context: Any
    ) -> deployment_pb2.Deployment:
        new = parse(NewDeployment, request)
        caller = current_call().principal.subject

        async def create(unit: Any, version: VersionInfo) -> deployment_pb2.Deployment:
            store = DeploymentRepository(unit)
            return deployment_message(await self._deployments.create(store, new.deployment_id, version, caller))

        resolve = partial(self._source.version, request.model_version, caller)
        return await self._told(self._mutations.run_prepared(request, deployment_pb2.Deployment, resolve, create))

    async def UpdateDeployment(
        self, request: deployment_pb.UpdateDeploymentRequest, context: Any
    ) -> deployment_pb2.Deployment:
        name, model_version = replacement(request)

        async def replace(unit: Any, version: VersionInfo) -> deployment_pb2.Deployment:
            return deployment_message(await self._deployments.replace(DeploymentRepository(unit), name, version))

        resolve = partial(self._source.version, model_version, current_call().principal.subject)
        return await self._told(self._mutations.run_prepared(request, deployment_pb2.Deployment, resolve, replace))

    async def GetDeployment(
        self, request: deployment_pb.GetDeploymentRequest, context: Any
    ) -> deployment_pb2.Deployment:
        name = parse(NamedDeployment, request).name
        return deployment_message(await self._told(self._get(name)))

    async def ListDeployments(
        self, request: deployment_pb.ListDeploymentsRequest, context: Any
    ) -> deployment_pb.ListDeploymentsResponse:
        scope = ("ListDeployments",)
        page = self._pages.page(scope, request.page_size, request.page_token)
        principal = current_call().principal
        deployments, after = await self._told(
            self._list(
                page, lambda name: self._admission.allows(principal, Permission.PERMISSION_DEPLOYMENTS_READ, name)
            )
        )
        # Off the loop: a page of large signatures takes a while.
        messages = await asyncio.to_thread(lambda: [deployment_message(deployment) for deployment in deployments])
        return deployment_pb.ListDeploymentsResponse(
            deployments=messages, next_page_token=self._pages.next_token(scope, after)
        )

    async def DeleteDeployment(
        self, request: deployment_pb.DeleteDeploymentRequest, context: Any
    ) -> deployment_pb.DeleteDeploymentResponse:
        name = parse(NamedDeployment, request).name

        async def delete(unit: Any) -> deployment_pb.DeleteDeploymentResponse:
            await self._deployments.delete(DeploymentRepository(unit), name)
            return deployment_pb.DeleteDeploymentResponse()

        return await self._told(self._mutations.run(request, deployment_pb.DeleteDeploymentResponse, delete))

    async def _get(self, name: str) -> Deployment:
        async with self._database.transaction() as connection:
            deployment = await DeploymentReader(connection).get(name)
        if deployment is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND, deployment=name)
        return deployment

    async def _list(self, page: Page, visible: Callable[[str], bool]) -> tuple[list[Deployment], str | None]:
        async with self._database.transaction() as connection:
            return await DeploymentReader(connection).visible(page, visible)

    async def _told(self, answer: Awaitable[AnswerT]) -> AnswerT:
        """The answer, or why there is none, when this process has caught up with the tables that it is of."""
        try:
            told = await answer
        except InferplaneError:
            await self._policy.catch_up()
            raise
        await self._policy.catch_up()
        return told
