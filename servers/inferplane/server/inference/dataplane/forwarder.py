"""The data plane: one fused handler from a caller's bytes to Triton's and back.

It does what the interceptors do for other methods, in one function and without a log line: the prediction record
is its access log.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Never

import grpc
from tritonclient.grpc import service_pb2

from inferplane.common.v1.access_pb2 import Permission
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.admission import denied
from inferplane.server.access.principal import Principal
from inferplane.server.access.snapshot import PolicySnapshot, Route
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.dataplane.request import InferRequest, check_inputs, read_infer_request
from inferplane.server.inference.records.recorder import Noted, Recorder
from inferplane.server.inference.triton_link import RawCall, TritonLink, from_triton
from inferplane.server.limits import MAX_CLIENT_REQUEST_ID
from inferplane.server.rpc.errors import status_code

__all__ = ["PREDICTION_ID_KEY", "Forwarder", "Prediction"]

PREDICTION_ID_KEY = "inferplane-prediction-id"
_PREDICT = Permission.PERMISSION_PREDICT


class Prediction:
    """One call on its way: who asked, what for, and since when."""

    __slots__ = ("arrived_ns", "caller", "client_request_id", "id", "request", "route", "started_ns")

    def __init__(self, prediction_id: str, caller: str, request: InferRequest, route: Route) -> None:
        self.id = prediction_id
        self.caller = caller
        self.request = request
        self.route = route
        self.client_request_id = _client_id(request.head.id)
        self.arrived_ns = time.time_ns()
        self.started_ns = time.monotonic_ns()


def _client_id(text: str) -> str:
    return text.encode()[:MAX_CLIENT_REQUEST_ID].decode(errors="ignore").replace("\0", "") if text else ""


class Forwarder:
    """Authorizes, checks, forwards and notes predictions. `cap` is the longest a call may take, in seconds."""

    def __init__(self, link: TritonLink, policy: Callable[[], PolicySnapshot], recorder: Recorder, cap: float) -> None:
        self._infer: RawCall = link.raw_unary("ModelInfer")
        self._stream: RawCall = link.raw_stream("ModelStreamInfer")
        self._metadata = link.metadata
        self._policy = policy
        self._recorder = recorder
        self._cap = cap

    def admit(self, principal: Principal, prediction_id: str, data: bytes) -> Prediction:
        """Read a request and let it pass, or raise: PERMISSION_DENIED, DEPLOYMENT_NOT_FOUND, INVALID_FIELD, …"""
        request = read_infer_request(data)
        snapshot = self._policy()
        name = request.head.model_name
        if not snapshot.allows(principal.subject, _PREDICT, name):
            raise denied(_PREDICT, name[:128])
        route = snapshot.routes.get(name)
        if route is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND, deployment=name)
        prediction = Prediction(prediction_id, principal.subject, request, route)
        if not route.ready:
            self._fail(prediction, InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_READY, retry_after=1.0))
        if request.head.model_version not in ("", str(route.target.version)):
            self._fail(prediction, InferplaneError(ErrorReason.ERROR_REASON_MODEL_VERSION_NOT_FOUND, deployment=name))
        try:
            check_inputs(request, route.target.signature)
        except InferplaneError as error:
            self._fail(prediction, error)
        return prediction

    async def forward(self, prediction: Prediction, data: bytes, remaining: float | None) -> bytes:
        """Triton's answer to an admitted request; the call is recorded whatever becomes of it."""
        timeout = self._cap if remaining is None else min(self._cap, remaining)
        try:
            answer: bytes = await self._infer(data, metadata=self._metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            self._fail(prediction, from_triton(error))
        except asyncio.CancelledError:
            self._note(prediction, grpc.StatusCode.CANCELLED, b"")
            raise
        self._note(prediction, grpc.StatusCode.OK, answer)
        return answer

    async def forward_stream(
        self, admitted: AsyncIterator[tuple[Prediction, bytes]], answer: Callable[[Prediction, bytes], Any]
    ) -> None:
        """Pass admitted requests on and each answer back, in order: models from ONNX answer each request once."""
        waiting: asyncio.Queue[Prediction] = asyncio.Queue()
        stream = self._stream(metadata=self._metadata)

        async def pump() -> None:
            try:
                async for prediction, data in admitted:
                    waiting.put_nowait(prediction)
                    await stream.write(data)
                await stream.done_writing()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # Triton's side has ended; whoever reads from it learns why.
                return
            except BaseException:
                stream.cancel()
                raise

        pumping = asyncio.create_task(pump())
        try:
            async for data in stream:
                prediction = waiting.get_nowait()
                self._note(prediction, *_stream_outcome(data))
                await answer(prediction, data)
            await pumping
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            # If the caller's side failed first, that is the reason.
            if pumping.done() and not pumping.cancelled() and (cause := pumping.exception()) is not None:
                raise cause from None
            if isinstance(error, grpc.aio.AioRpcError):
                raise from_triton(error) from error
            raise
        finally:
            pumping.cancel()
            stream.cancel()
            while not waiting.empty():
                self._note(waiting.get_nowait(), grpc.StatusCode.CANCELLED, b"")

    def _fail(self, prediction: Prediction, error: InferplaneError) -> Never:
        self._note(prediction, status_code(error.reason), b"")
        raise error

    def _note(self, prediction: Prediction, code: grpc.StatusCode, answer: bytes) -> None:
        route = prediction.route
        self._recorder.note(
            Noted(
                prediction.id,
                prediction.client_request_id,
                prediction.caller,
                route,
                prediction.arrived_ns,
                time.monotonic_ns() - prediction.started_ns,
                code.value[0],
                answer if route.target.label_output else b"",
            )
        )


def _stream_outcome(data: bytes) -> tuple[grpc.StatusCode, bytes]:
    """The status of one streamed answer and the bytes of its ModelInferResponse."""
    message = service_pb2.ModelStreamInferResponse.FromString(data)
    if message.error_message:
        return grpc.StatusCode.INVALID_ARGUMENT, b""
    return grpc.StatusCode.OK, message.infer_response.SerializeToString()
