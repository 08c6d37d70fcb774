"""One prediction on its way: admitted, in turn between callers, to Triton and back."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import grpc

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.admission import Admission
from inferplane.server.access.snapshot import Route
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import Presence
from inferplane.server.identity.principal import Principal
from inferplane.server.inference.dataplane.answer import Answer, Output
from inferplane.server.inference.dataplane.answer_reader import AnswerReader
from inferplane.server.inference.dataplane.attempt import Attempt
from inferplane.server.inference.dataplane.in_time import in_time
from inferplane.server.inference.dataplane.known_answers import AllKnownAnswers, KnownAnswers
from inferplane.server.inference.dataplane.outcome import Outcomes
from inferplane.server.inference.dataplane.routing import Admitted, Router, label_output
from inferplane.server.inference.dataplane.under_way import Place, UnderWay, Window
from inferplane.server.inference.dataplane.unread import UnreadAnswers
from inferplane.server.inference.records.labels import MAX_KEPT, LabelSource, label_source
from inferplane.server.inference.triton_link import TritonLink, from_triton

__all__ = ["Forwarder"]

FINISHING = 2.0
"""Seconds; the supervisor kills a worker that takes five more than `drain_grace` to end."""

DecodedT = TypeVar("DecodedT")


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
        self._router = Router(admission)
        self._outcomes = outcomes
        self._unread = unread
        self._cap = cap
        present = Presence()
        self._known = AllKnownAnswers()
        self._under_way = UnderWay(window or Window(), present)
        self._reader = AnswerReader(link, present)

    @property
    def under_way(self) -> int:
        """About how many bytes of requests are here, at Triton or waiting for it."""
        return self._under_way.size

    async def finish(self) -> None:
        """Let Triton end the calls that nobody waits for any more, for some seconds: what follows cancels them."""
        await self._reader.finish(FINISHING)

    async def predict(
        self, principal: Principal, prediction_id: str, body: bytes, remaining: float | None = None
    ) -> Answer:
        """The answer to a serialised ModelInferRequest; the call is counted and recorded whatever becomes of it.

        The answer is held as unread, to be released when it was sent, by its caller and with the size of its data.
        `remaining` is how long, in seconds, the caller waits. Raises PERMISSION_DENIED, DEPLOYMENT_NOT_FOUND,
        DEPLOYMENT_NOT_READY, MODEL_VERSION_NOT_FOUND, INVALID_FIELD, MALFORMED_REQUEST, MESSAGE_TOO_LARGE, OVERLOADED,
        DEADLINE_EXCEEDED, DEPENDENCY_UNAVAILABLE, INFERENCE_FAILED, and what Triton says of the input.
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
        makes of the answer is the answer. What they raise is the outcome of the call, like everything else. The answer
        is held as unread: `decode` sees to it that it is released when it was sent."""
        attempt = Attempt(prediction_id, principal.subject)
        try:
            attempt.route = self._router.route(principal, name)
            # Before the request is made of what was typed, which may take a while.
            self._unread.check(principal.subject)
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
            answer = self._router.judge(data, admitted, route)
            output = label_output(answer, admitted)
            return answer, None if output is None else await _labels_of(answer, output)
        except BaseException:
            self._unread.release(principal.subject, len(data))
            raise

    async def _forward(
        self, attempt: Attempt, principal: Principal, body: bytes, deadline: float
    ) -> tuple[Admitted, Route, bytes]:
        """What was known of the request when Triton was asked, and its answer."""
        admitted, route, known, place = await self._enter(attempt, principal, body, deadline)
        try:
            return admitted, route, await self._reader.answer(body, known, place, deadline)
        except grpc.aio.AioRpcError as error:
            raise from_triton(error) from error

    async def _enter(
        self, attempt: Attempt, principal: Principal, body: bytes, deadline: float
    ) -> tuple[Admitted, Route, KnownAnswers, Place]:
        """What is known of the request, and its place among those that are under way."""
        caller = principal.subject
        admitted, route = self._router.admit(attempt, principal, body)
        self._unread.check(caller)
        known = self._known.of(route)
        known.check(caller)
        while True:
            place = self._under_way.try_enter(caller, len(body), known.may_be(caller))
            if place is not None and self._reader.may_ask(known, caller, deadline):
                return admitted, route, known, place
            if place is None:
                answer = partial(known.may_be, caller)
                place = await in_time(self._under_way.enter(caller, len(body), answer), deadline)
            try:
                await self._reader.until_may_ask(known, caller, deadline)
                # Its session may have ended; its grants, and the version that is served, may be others by now.
                self._router.confirm(principal)
                admitted, route = self._router.admit(attempt, principal, body)
                before, known = known, self._known.of(route)
                known.check(caller)
            except BaseException:
                place.leave()
                raise
            if known.digest == before.digest:
                return admitted, route, known, place
            # What the answer may be was that of another version.
            place.leave()


async def _labels_of(answer: Answer, output: Output) -> LabelSource:
    content = answer.content(output)
    if len(content) <= MAX_KEPT:
        return label_source(output.datatype, output.shape, content)
    try:
        return await asyncio.to_thread(label_source, output.datatype, output.shape, content)
    except ValueError as error:
        detail = f"its answer's output '{output.name[:64]}' does not hold what its shape says: {error}"
        raise InferplaneError(ErrorReason.ERROR_REASON_INFERENCE_FAILED, detail=detail) from error
