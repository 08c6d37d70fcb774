"""One ModelStreamInfer: requests in, answers out in the order of the requests, each with an outcome of its own."""

import asyncio
import contextlib
import time
from functools import partial
from typing import NamedTuple

import grpc
import structlog
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from inferplane.common.v1.access_pb2 import Permission
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.admission import Admission
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import uuid7_text
from inferplane.server.inference.dataplane.forwarder import Forwarder
from inferplane.server.inference.dataplane.unread import UnreadAnswers
from inferplane.server.inference.wire import opening
from inferplane.server.rpc.call import Call
from inferplane.server.rpc.errors import public_message
from inferplane.server.rpc.intake.bodies import BodyReader
from inferplane.server.tasks import start_task

__all__ = ["IN_FLIGHT", "PredictionStream"]

log = structlog.get_logger()

IN_FLIGHT = 16
"""Requests of one stream that are read and not answered yet, beside one that waits for its place and one whose answer
is being written; more wait with their sender."""
_INFER_RESPONSE = 2
MAX_ECHOED_ID = 1024
SEQUENCE = b"sequence_id"
SEARCHED = 4 << 10
"""Bytes of a request in which the parameter is looked for; one more wait is all that a false find costs."""
MOST_NAMES = 16
"""Deployments of one stream whose grants are looked at while it lasts."""
PREDICTION_ID_PARAMETER = "inferplane_prediction_id"


class _Reply(NamedTuple):
    """A message for the client, and how many bytes of it are held as unread."""

    message: bytes
    held: int


class PredictionStream:
    """Answers each request as ModelInfer would; one that is refused or fails is answered by an `error_message`, as
    Triton does it, and the stream goes on. It is idle, and ends after `idle` seconds, where nothing arrives, nothing is
    under way and no answer could be written."""

    def __init__(
        self,
        call: Call,
        forwarder: Forwarder,
        admission: Admission,
        bodies: BodyReader,
        unread: UnreadAnswers,
        idle: float,
    ) -> None:
        self._call = call
        self._forwarder = forwarder
        self._admission = admission
        self._bodies = bodies
        self._unread = unread
        self._idle = idle
        self._moved = time.monotonic()
        self._answers: asyncio.Queue[asyncio.Task[_Reply] | None] = asyncio.Queue(IN_FLIGHT)
        self._under_way: set[asyncio.Task[_Reply]] = set()
        self._stuck = 0
        """Bytes of the answer that is being written, as they are held."""
        self._latest_part: asyncio.Task[_Reply] | None = None
        self._names: set[str] = set()
        call.rests_on(self._check_progress)
        call.rests_on(self._check_caller)

    async def run(self) -> None:
        """Serve until the client has said its last and has been answered."""
        sides = [start_task(self._read()), start_task(self._write())]
        try:
            done, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_EXCEPTION)
            for side in done:
                side.result()
        finally:
            remaining = [*sides, *self._under_way]
            for task in remaining:
                task.cancel()
            try:
                await asyncio.gather(*remaining, return_exceptions=True)
            finally:
                for answered in list(self._under_way):
                    self._let_go(answered)
                # gRPC keeps it until the client has taken it or is gone.
                self._call.afterwards(partial(self._unread.release, self._call.principal.subject, self._stuck))

    async def _read(self) -> None:
        while (data := await self._bodies.message(self._call)) is not grpc.aio.EOF:
            self._moved = time.monotonic()
            # Parts of one sequence reach Triton in order only if each waits for the one before it.
            of_a_sequence = SEQUENCE in data[:SEARCHED]
            if of_a_sequence and self._latest_part is not None:
                # Nothing more is read meanwhile, so that what waits is one message.
                await asyncio.wait([self._latest_part])
            task = start_task(self._answer(data))
            if of_a_sequence:
                self._latest_part = task
            self._under_way.add(task)
            await self._answers.put(task)
        await self._answers.put(None)

    async def _write(self) -> None:
        while (task := await self._answers.get()) is not None:
            reply = await task
            self._moved = time.monotonic()
            self._under_way.discard(task)
            self._stuck = reply.held
            await self._call.write(reply.message)
            self._moved = time.monotonic()
            self._unread.release(self._call.principal.subject, reply.held)
            self._stuck = 0

    def _let_go(self, task: "asyncio.Task[_Reply]") -> None:
        """The answer will never be written."""
        if not task.done():
            task.add_done_callback(self._let_go)
            return
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is None:
            self._unread.release(self._call.principal.subject, task.result().held)

    async def _answer(self, data: bytes) -> "_Reply":
        prediction_id = uuid7_text()
        try:
            answer = await self._forwarder.predict(self._call.principal, prediction_id, data)
        except InferplaneError as error:
            return _Reply(_refusal(error, data), 0)
        except (Exception, SystemExit, KeyboardInterrupt):
            # One request that nobody foresaw must not end the others.
            log.exception("unhandled_exception", method=self._call.method.path, request_id=prediction_id)
            return _Reply(_refusal(InferplaneError(ErrorReason.ERROR_REASON_INTERNAL), data), 0)
        if len(self._names) < MOST_NAMES:
            self._names.add(answer.deployment)
        said = _said_of_each(prediction_id)
        message = b"".join((opening(_INFER_RESPONSE, len(answer.data) + len(said)), answer.data, said))
        return _Reply(message, len(answer.data))

    def _check_caller(self) -> None:
        """Whether the caller may still do what this stream has done so far."""
        principal = self._call.principal
        self._admission.confirm(principal)
        self._admission.authorize_somewhere(principal, Permission.PERMISSION_PREDICT)
        for name in self._names:
            self._admission.authorize(principal, Permission.PERMISSION_PREDICT, name)

    def _check_progress(self) -> None:
        waiting_for_triton = any(not task.done() for task in self._under_way)
        if not waiting_for_triton and time.monotonic() - self._moved > self._idle:
            raise InferplaneError(ErrorReason.ERROR_REASON_STREAM_STALLED)


def _said_of_each(prediction_id: str) -> bytes:
    """Parameters to append to a serialised answer: its prediction's id, and that none follows, which clients of Triton
    wait for."""
    said = service_pb2.ModelInferResponse()
    said.parameters[PREDICTION_ID_PARAMETER].string_param = prediction_id
    said.parameters["triton_final_response"].bool_param = True
    serialised: bytes = said.SerializeToString()
    return serialised


def _refusal(error: InferplaneError, request: bytes) -> bytes:
    """An error in place of an answer, with the request's own id where it can be read at little cost."""
    response = service_pb2.ModelStreamInferResponse(error_message=public_message(error))
    if len(request) <= MAX_ECHOED_ID * 4:
        with contextlib.suppress(DecodeError):
            response.infer_response.id = service_pb2.ModelInferRequest.FromString(request).id[:MAX_ECHOED_ID]
    serialised: bytes = response.SerializeToString()
    return serialised
