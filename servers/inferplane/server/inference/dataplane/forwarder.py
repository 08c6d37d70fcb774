"""One prediction on its way: admitted, in turn between callers, to Triton and back."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import grpc

from inferplane.common.v1.access_pb2 import Permission
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.admission import Admission
from inferplane.server.access.principal import Principal
from inferplane.server.access.snapshot import Route, Target
from inferplane.server.errors import InferplaneError, invalid_field
from inferplane.server.fairness import FairGate, GateFullError
from inferplane.server.inference.dataplane.answer import Answer, Output, UnfitAnswerError, read_answer
from inferplane.server.inference.dataplane.outcome import Attempt, Outcomes
from inferplane.server.inference.dataplane.request import (
    InferRequest,
    check_request,
    raw_contents,
    read_envelope,
    read_head,
)
from inferplane.server.inference.dataplane.templates import Templates
from inferplane.server.inference.records.labels import MAX_KEPT, LabelSource, label_source
from inferplane.server.inference.triton_link import RawCall, TritonLink, from_triton
from inferplane.server.names import MODEL_ID

__all__ = ["Forwarder", "Window"]

_PREDICT = Permission.PERMISSION_PREDICT
_NAME = re.compile(MODEL_ID)


DecodedT = TypeVar("DecodedT")

CALL_COST = 64 << 10
"""Bytes that a call counts for beside its body."""
REQUESTS = 256
"""Heads of requests that are remembered, and for each of them ANSWERS heads of answers."""
ANSWERS = 4


class Window(NamedTuple):
    """How much is under way to Triton at once, and how much may wait for it; all in bytes, of all callers and of one.

    A call counts as its body and CALL_COST, so 128 small calls of one caller, or a few large ones, are under way:
    enough to keep Triton busy. While another caller is here it is less, so that their next call does not wait long.
    """

    capacity: int = 128 << 20
    each: int = 8 << 20
    each_beside: int = 2 << 20
    waiting: int = 512 << 20
    waiting_each: int = 128 << 20


class Forwarder:
    """Authorizes, checks and forwards predictions, and sees to it that each has its outcome. `cap` is the longest a
    call may take, in seconds."""

    def __init__(
        self, link: TritonLink, admission: Admission, outcomes: Outcomes, cap: float, window: Window | None = None
    ) -> None:
        self._infer: RawCall = link.raw_unary("ModelInfer")
        self._metadata = link.metadata
        self._admission = admission
        self._outcomes = outcomes
        self._cap = cap
        self._known: Templates[_Admitted] = Templates(REQUESTS)
        window = window or Window()
        self._gate = FairGate(
            capacity=window.capacity,
            each=window.each,
            each_beside=window.each_beside,
            waiting=window.waiting,
            waiting_each=window.waiting_each,
        )

    async def predict(
        self, principal: Principal, prediction_id: str, body: bytes, remaining: float | None = None
    ) -> Answer:
        """The answer to a serialised ModelInferRequest; the call is counted and recorded whatever becomes of it.

        `remaining` is how long, in seconds, the caller waits. Raises PERMISSION_DENIED, DEPLOYMENT_NOT_FOUND,
        DEPLOYMENT_NOT_READY, MODEL_VERSION_NOT_FOUND, INVALID_FIELD, MALFORMED_REQUEST, OVERLOADED, INFERENCE_FAILED,
        and what Triton says of the input.
        """
        attempt = Attempt(prediction_id, principal.subject)
        try:
            answer, labels = await self._answer(attempt, principal, body, remaining)
        except BaseException as error:
            self._outcomes.failed(attempt, error)
            raise
        self._outcomes.succeeded(attempt, answer.target, labels)
        return answer

    async def predict_as(
        self,
        principal: Principal,
        prediction_id: str,
        name: str,
        encode: Callable[[], bytes],
        decode: Callable[[Answer], DecodedT],
        remaining: float | None,
    ) -> DecodedT:
        """The same in another form: `encode` makes the ModelInferRequest to the deployment `name`, and what `decode`
        makes of the answer is the answer. What they raise is the outcome of the call, like everything else."""
        attempt = Attempt(prediction_id, principal.subject)
        try:
            attempt.route = self._route(principal, name)
            answer, labels = await self._answer(attempt, principal, encode(), remaining)
            decoded = decode(answer)
        except BaseException as error:
            self._outcomes.failed(attempt, error)
            raise
        self._outcomes.succeeded(attempt, answer.target, labels)
        return decoded

    async def _answer(
        self, attempt: Attempt, principal: Principal, body: bytes, remaining: float | None
    ) -> tuple[Answer, LabelSource | None]:
        deadline = time.monotonic() + (self._cap if remaining is None else min(self._cap, remaining))
        admitted, route = self._admit(attempt, principal, body)
        data = await self._forward(principal.subject, body, deadline)
        answer = _checked(data, admitted, route)
        output = _label_output(answer, admitted)
        if output is None:
            return answer, None
        content = answer.content(output)
        if len(content) <= MAX_KEPT:
            return answer, label_source(output.datatype, output.shape, content)
        return answer, await asyncio.to_thread(label_source, output.datatype, output.shape, content)

    def _admit(self, attempt: Attempt, principal: Principal, body: bytes) -> tuple["_Admitted", Route]:
        """Nothing but the name is looked at, or kept, of a request whose caller may not make it."""
        admitted = self._known.find(body)
        if admitted is not None:
            route = attempt.route = self._route(principal, admitted.name)
            if admitted.target is route.target and route.ready:
                return admitted, route
        envelope = read_envelope(body)
        route = attempt.route = self._route(principal, envelope.name)
        request = read_head(envelope)
        attempt.named(request.head.id)
        _check(request, route)
        admitted = _Admitted(route.deployment, route.target, request.requested)
        if not request.head.id and (contents := raw_contents(body)):
            self._known.remember(body, contents, admitted)
        return admitted, route

    def _route(self, principal: Principal, name: str) -> Route:
        if _NAME.fullmatch(name) is None:
            raise invalid_field("model_name", f"must match {MODEL_ID}, and '{name[:64]}' does not")
        self._admission.authorize(principal, _PREDICT, name)
        route = self._admission.policy().routes.get(name)
        if route is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND, deployment=name)
        return route

    async def _forward(self, caller: str, body: bytes, deadline: float) -> bytes:
        cost = len(body) + CALL_COST
        if not self._gate.try_enter(caller, cost):
            await self._wait(caller, cost, deadline)
        try:
            timeout = deadline - time.monotonic()
            answer: bytes = await self._infer(body, metadata=self._metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise from_triton(error) from error
        finally:
            self._gate.leave(caller, cost)
        return answer

    async def _wait(self, caller: str, cost: int, deadline: float) -> None:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._gate.enter(caller, cost)
        except GateFullError:
            raise InferplaneError.overloaded("too many predictions wait") from None
        except TimeoutError:
            raise InferplaneError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED) from None


class _Admitted:
    """What is known of a request that was checked, and of the answers to requests like it."""

    __slots__ = ("answers", "name", "requested", "target")

    def __init__(self, name: str, target: Target, requested: dict[str, int]) -> None:
        self.name = name
        self.target = target
        self.requested = requested
        self.answers: Templates[tuple[Target, tuple[Output, ...]]] = Templates(ANSWERS)


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


def _checked(data: bytes, admitted: _Admitted, route: Route) -> Answer:
    """The answer, once it is seen to be what the version promises; raises INFERENCE_FAILED."""
    known = admitted.answers.find(data)
    # The version that answered may have been replaced since.
    if known is not None and known[0] in (route.target, *route.others):
        return Answer(data, route.deployment, *known)
    try:
        answer = read_answer(data, route, admitted.requested)
    except UnfitAnswerError as error:
        detail = f"its answer does not fit the version's signature: {error}"
        raise InferplaneError(ErrorReason.ERROR_REASON_INFERENCE_FAILED, detail=detail) from error
    contents = [(output.start, output.end) for output in answer.outputs]
    admitted.answers.remember(data, contents, (answer.target, answer.outputs))
    return answer


def _label_output(answer: Answer, admitted: _Admitted) -> Output | None:
    """The output that holds the predicted classes. Where Triton was asked to rank them itself, it is another."""
    wanted = answer.target.label_output
    if not wanted or admitted.requested.get(wanted):
        return None
    return next((output for output in answer.outputs if output.name == wanted), None)
