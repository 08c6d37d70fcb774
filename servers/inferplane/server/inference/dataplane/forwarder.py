"""One prediction on its way: admitted, in turn between callers, to Triton and back."""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import replace
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
from inferplane.server.inference.dataplane.given_up import GivenUpCalls
from inferplane.server.inference.dataplane.outcome import Attempt, Outcomes
from inferplane.server.inference.dataplane.request import (
    InferRequest,
    check_request,
    raw_contents,
    read_envelope,
    read_head,
)
from inferplane.server.inference.dataplane.templates import Templates
from inferplane.server.inference.dataplane.unread import UnreadAnswers
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
    enough to keep Triton busy, few enough that another caller's next call does not wait long.
    """

    capacity: int = 128 << 20
    each: int = 8 << 20
    waiting: int = 512 << 20
    waiting_each: int = 128 << 20


class Forwarder:
    """Authorizes, checks and forwards predictions, and sees to it that each has its outcome. `cap` is the longest a
    call may take, in seconds."""

    def __init__(
        self,
        link: TritonLink,
        admission: Admission,
        outcomes: Outcomes,
        unread: UnreadAnswers,
        cap: float,
        window: Window | None = None,
    ) -> None:
        self._infer: RawCall = link.raw_unary("ModelInfer")
        self._metadata = link.metadata
        self._admission = admission
        self._outcomes = outcomes
        self._unread = unread
        self._cap = cap
        self._known: Templates[_Admitted] = Templates(REQUESTS)
        window = window or Window()
        self._gate = FairGate(
            capacity=window.capacity, each=window.each, waiting=window.waiting, waiting_each=window.waiting_each
        )
        self._given_up = GivenUpCalls(self._gate)

    async def predict(
        self, principal: Principal, prediction_id: str, body: bytes, remaining: float | None = None
    ) -> Answer:
        """The answer to a serialised ModelInferRequest; the call is counted and recorded whatever becomes of it.

        The answer is held as unread, to be released when it was sent, by its caller and with the size of its data.
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
            try:
                decoded = decode(answer)
            except BaseException:
                self._unread.release(principal.subject, len(answer.data))
                raise
        except BaseException as error:
            self._outcomes.failed(attempt, error)
            raise
        self._outcomes.succeeded(attempt, answer.target, labels)
        return decoded

    async def _answer(
        self, attempt: Attempt, principal: Principal, body: bytes, remaining: float | None
    ) -> tuple[Answer, LabelSource | None]:
        deadline = time.monotonic() + (self._cap if remaining is None else min(self._cap, remaining))
        admitted, route, data = await self._forward(attempt, principal, body, deadline)
        self._unread.hold(principal.subject, len(data))
        try:
            answer = self._checked(data, admitted, route)
            return answer, await _labels_of(answer, admitted)
        except BaseException:
            self._unread.release(principal.subject, len(data))
            raise

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

    async def _forward(
        self, attempt: Attempt, principal: Principal, body: bytes, deadline: float
    ) -> tuple["_Admitted", Route, bytes]:
        """What was known of the request when Triton was asked, and its answer."""
        admitted, route = self._admit(attempt, principal, body)
        caller, cost = principal.subject, len(body) + CALL_COST
        if not self._gate.try_enter(caller, cost):
            await self._wait(caller, cost, deadline)
            try:
                # Its grants, and the version that is served, may be others by now.
                admitted, route = self._admit(attempt, principal, body)
            except BaseException:
                self._gate.leave(caller, cost)
                raise
        given_up = True
        try:
            timeout = deadline - time.monotonic()
            data: bytes = await self._infer(body, metadata=self._metadata, timeout=timeout)
            given_up = False
        except grpc.aio.AioRpcError as error:
            given_up = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            raise from_triton(error) from error
        finally:
            if given_up:
                self._given_up.keep(route.deployment, caller, cost)
            else:
                self._gate.leave(caller, cost)
                self._given_up.let_go(route.deployment)
        return admitted, route, data

    def _checked(self, data: bytes, admitted: "_Admitted", route: Route) -> Answer:
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


async def _labels_of(answer: Answer, admitted: _Admitted) -> LabelSource | None:
    output = _label_output(answer, admitted)
    if output is None:
        return None
    content = answer.content(output)
    if len(content) <= MAX_KEPT:
        return label_source(output.datatype, output.shape, content)
    try:
        return await asyncio.to_thread(label_source, output.datatype, output.shape, content)
    except ValueError as error:
        detail = f"its answer's output '{output.name[:64]}' does not hold what its shape says: {error}"
        raise InferplaneError(ErrorReason.ERROR_REASON_INFERENCE_FAILED, detail=detail) from error


def _label_output(answer: Answer, admitted: _Admitted) -> Output | None:
    """The output that holds the predicted classes. Where Triton was asked to rank them itself, it is another."""
    wanted = answer.target.label_output
    if not wanted or admitted.requested.get(wanted):
        return None
    return next((output for output in answer.outputs if output.name == wanted), None)
