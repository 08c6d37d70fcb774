"""The Open Inference Protocol as Triton speaks it, for unmodified Triton clients."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.admission import Admission
from inferplane.server.access.snapshot import PolicySnapshot
from inferplane.server.errors import InferplaneError
from inferplane.server.ids import uuid7
from inferplane.server.inference.dataplane.forwarder import PREDICTION_ID_KEY, Forwarder, Prediction
from inferplane.server.inference.triton_link import SERVICE, TritonLink, from_triton
from inferplane.server.names import subject_of
from inferplane.server.rpc.call import Call, Context
from inferplane.server.rpc.interceptors.deadlines import DeadlinePolicy
from inferplane.server.rpc.interceptors.error_translation import error_translation
from inferplane.server.rpc.interceptors.request_identity import REQUEST_ID_KEY
from inferplane.server.rpc.methods import method_of
from inferplane.server.rpc.pipeline import Handler, RunningCalls

__all__ = ["fused_handlers", "governed_handlers"]

FORWARDED = ("ServerLive", "ServerReady", "ServerMetadata")
OF_A_MODEL = ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
FUSED = ("ModelInfer", "ModelStreamInfer")


def governed_handlers(link: TritonLink, policy: Callable[[], PolicySnapshot]) -> dict[str, Handler]:
    """Handlers that go through the interceptors: those forwarded, and refusals of all the others."""
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    handlers: dict[str, Handler] = {}
    for method in methods:
        if method.name in FUSED:
            continue
        request = getattr(service_pb2, method.input_type.name)
        if method.name in FORWARDED:
            behaviour = _forward(link, method.name, lambda _request: None)
        elif method.name in OF_A_MODEL:
            behaviour = _forward(link, method.name, _deployed(policy))
        else:
            behaviour = _refuse
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(behaviour, request.FromString, bytes)
    return handlers


def _forward(link: TritonLink, method: str, check: Callable[[Any], None]) -> Callable[..., Any]:
    call = link.raw_unary(method)

    async def forward(request: Any, context: Context) -> bytes:
        check(request)
        try:
            remaining = context.time_remaining()
            answer: bytes = await call(request.SerializeToString(), metadata=link.metadata, timeout=remaining)
        except grpc.aio.AioRpcError as error:
            raise from_triton(error) from error
        return answer

    return forward


def _deployed(policy: Callable[[], PolicySnapshot]) -> Callable[[Any], None]:
    def check(request: Any) -> None:
        # A Triton of the user's own may hold models that were never deployed here: they are not ours to show.
        if subject_of(request.name) not in policy().routes:
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND, deployment=request.name)

    return check


async def _refuse(_request: Any, _context: Context) -> bytes:
    raise InferplaneError(ErrorReason.ERROR_REASON_METHOD_REFUSED)


def fused_handlers(
    forwarder: Forwarder, admission: Admission, calls: RunningCalls, deadlines: DeadlinePolicy
) -> Mapping[str, Handler]:
    """ModelInfer and ModelStreamInfer, which do the interceptors' work themselves."""
    infer = method_of(SERVICE, "ModelInfer", streams=False)
    stream = method_of(SERVICE, "ModelStreamInfer", streams=True)

    async def authenticated(call: Call) -> None:
        call.principal = await admission.authenticate(call.context.invocation_metadata() or ())

    async def model_infer(data: bytes, context: Context) -> bytes:
        call = Call(infer, context)
        with calls.tracking(call):
            async with error_translation(call):
                await authenticated(call)
                context.set_trailing_metadata(((PREDICTION_ID_KEY, call.request_id), (REQUEST_ID_KEY, call.request_id)))
                prediction = forwarder.admit(call.principal, call.request_id, data)
                return await forwarder.forward(prediction, data, context.time_remaining())

    async def model_stream_infer(requests: AsyncIterator[bytes], context: Context) -> None:
        call = Call(stream, context)

        async def admitted() -> AsyncIterator[tuple[Prediction, bytes]]:
            async for data in deadlines.pace(call, requests):
                yield forwarder.admit(call.principal, str(uuid7()), data), data

        async def answer(_prediction: Prediction, data: bytes) -> None:
            await context.write(data)

        with calls.tracking(call):
            async with error_translation(call):
                await authenticated(call)
                await forwarder.forward_stream(admitted(), answer)

    unary: Any = model_infer
    streaming: Any = model_stream_infer
    return {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(unary),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(streaming),
    }
