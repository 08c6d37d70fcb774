"""Which version a request is for, whether it is one that it takes, and whether an answer is one that it gives.

Decided by the policy as it stands and by the bytes, without waiting for anything.
"""

import re
from dataclasses import replace

from inferplane.common.v1.access_pb2 import Permission
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.admission import Admission
from inferplane.server.access.snapshot import Route, Target
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.identity.principal import Principal
from inferplane.server.inference.dataplane.answer import Answer, Output, UnfitAnswerError, read_answer
from inferplane.server.inference.dataplane.attempt import Attempt
from inferplane.server.inference.dataplane.request import (
    InferRequest,
    check_request,
    raw_positions,
    read_envelope,
    read_head,
)
from inferplane.server.inference.dataplane.templates import Templates
from inferplane.server.names import MODEL_ID

__all__ = ["Admitted", "Router", "label_output"]

_PREDICT = Permission.PERMISSION_PREDICT
_NAME = re.compile(MODEL_ID)
REQUESTS = 256
"""Heads of requests that are remembered, and for each of them ANSWERS heads of answers."""
ANSWERS = 4


class Admitted:
    """What is known of a request that was checked, and of the answers to requests like it."""

    __slots__ = ("answers", "name", "requested", "target")

    def __init__(self, name: str, target: Target, requested: dict[str, int]) -> None:
        self.name = name
        self.target = target
        self.requested = requested
        self.answers: Templates[tuple[Target, tuple[Output, ...]]] = Templates(ANSWERS)


class Router:
    """Admits requests and judges answers. What it found is remembered by their heads."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._known: Templates[Admitted] = Templates(REQUESTS)

    def admit(self, attempt: Attempt, principal: Principal, body: bytes) -> tuple[Admitted, Route]:
        """What a serialised ModelInferRequest is, and where to. Nothing but the name is looked at, or kept, of one
        whose caller may not make it.

        Raises PERMISSION_DENIED, DEPLOYMENT_NOT_FOUND, DEPLOYMENT_NOT_READY, MODEL_VERSION_NOT_FOUND, INVALID_FIELD,
        MALFORMED_REQUEST and MESSAGE_TOO_LARGE.
        """
        admitted = self._known.find(body)
        if admitted is not None:
            route = attempt.route = self.route(principal, admitted.name)
            if admitted.target is route.target and route.ready:
                return admitted, route
        envelope = read_envelope(body)
        route = attempt.route = self.route(principal, envelope.name)
        request = read_head(envelope)
        attempt.named(request.head.id)
        _check(request, route)
        admitted = Admitted(route.deployment, route.target, request.requested)
        if not request.head.id and (contents := raw_positions(body)):
            self._known.remember(body, contents, admitted)
        return admitted, route

    def confirm(self, principal: Principal) -> None:
        """Raises TOKEN_EXPIRED or SESSION_ENDED where credentials that were good are so no longer."""
        self._admission.confirm(principal)

    def route(self, principal: Principal, name: str) -> Route:
        """Where the deployment's name leads; raises INVALID_FIELD, PERMISSION_DENIED or DEPLOYMENT_NOT_FOUND."""
        if _NAME.fullmatch(name) is None:
            raise invalid_field("model_name", f"must match {MODEL_ID}, and '{name[:64]}' does not")
        self._admission.authorize(principal, _PREDICT, name)
        route = self._admission.policy().routes.get(name)
        if route is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND, deployment=name)
        return route

    def judge(self, data: bytes, admitted: Admitted, route: Route) -> Answer:
        """The answer, once it is seen to be what the version promises; raises INFERENCE_FAILED."""
        known = admitted.answers.find(data)
        # The version that answered may have been replaced since.
        if known is not None and known[0] in (route.target, *route.others):
            return Answer(data, route.deployment, *known)
        try:
            answer = read_answer(data, self._with_newest(route), admitted.requested)
        except UnfitAnswerError as error:
            detail = f"its answer does not fit the version's signature: {error}"
            raise InferplaneError(ErrorReason.ERROR_REASON_INFERENCE_FAILED, detail=detail) from error
        contents = [(output.start, output.end) for output in answer.outputs]
        admitted.answers.remember(data, contents, (answer.target, answer.outputs))
        return answer

    def _with_newest(self, route: Route) -> Route:
        """The same, with the versions that have come since the request was admitted."""
        try:
            present = self._admission.policy().routes.get(route.deployment)
        except InferplaneError:
            return route
        if present is None or present.target.model != route.target.model:
            return route
        return replace(route, others=(*route.others, present.target, *present.others))


def _check(request: InferRequest, route: Route) -> None:
    if not route.ready:
        raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_READY, retry_after=1.0)
    version = request.head.model_version
    if version and version != str(route.target.version):
        raise InferplaneError(
            ErrorReason.ERROR_REASON_MODEL_VERSION_NOT_FOUND,
            deployment=route.deployment,
            version=str(route.target.version),
        )
    check_request(request, route.target.signature)


def label_output(answer: Answer, admitted: Admitted) -> Output | None:
    """The output that holds the predicted classes. Where Triton was asked to rank them itself, it is another."""
    wanted = answer.target.label_output
    if not wanted or admitted.requested.get(wanted):
        return None
    return next((output for output in answer.outputs if output.name == wanted), None)
