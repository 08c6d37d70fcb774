"""The Open Inference Protocol as Triton speaks it, for unmodified Triton clients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.access.snapshot import PolicySnapshot
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.triton_link import TritonLink, from_triton
from inferplane.server.rpc.call import Context
from inferplane.server.rpc.pipeline import Handler

__all__ = ["governed_handlers"]

FORWARDED = ("ServerLive", "ServerMetadata")
OF_A_MODEL = ("ModelMetadata", "ModelConfig", "ModelStatistics")
FUSED = ("ModelInfer", "ModelStreamInfer")


def governed_handlers(
    link: TritonLink, policy: Callable[[], PolicySnapshot], serving: Callable[[], bool]
) -> dict[str, Handler]:
    """Handlers that go through the interceptors: those forwarded, and refusals of all the others. `serving` says
    whether the protocol is served here."""
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    handlers: dict[str, Handler] = {}
    for method in methods:
        if method.name in FUSED:
            continue
        request = getattr(service_pb2, method.input_type.name)
        if method.name in FORWARDED:
            # They ask for nothing in particular; what a stranger wrote into them is not Triton's to read.
            behaviour, read = _forward(link, method.name, lambda _request: None), partial(_empty, request)
        elif method.name == "ServerReady":
            behaviour, read = _server_ready(serving), request.FromString
        elif method.name == "ModelReady":
            behaviour, read = _ready(link, policy), request.FromString
        elif method.name in OF_A_MODEL:
            behaviour, read = _forward(link, method.name, _deployed(policy)), request.FromString
        else:
            # Not even parsed.
            behaviour, read = _refuse, None
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(behaviour, read, bytes)
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


def _server_ready(serving: Callable[[], bool]) -> Callable[..., Any]:
    """As health says. Triton itself is not ready while any model loads or has failed to."""

    async def ready(_request: Any, _context: Context) -> bytes:
        answer: bytes = service_pb2.ServerReadyResponse(ready=serving()).SerializeToString()
        return answer

    return ready


def _ready(link: TritonLink, policy: Callable[[], PolicySnapshot]) -> Callable[..., Any]:
    """As Triton does it: a model that is not there is not ready."""
    forward = _forward(link, "ModelReady", _deployed(policy))
    not_ready: bytes = service_pb2.ModelReadyResponse(ready=False).SerializeToString()

    async def ready(request: Any, context: Context) -> bytes:
        route = policy().routes.get(request.name)
        if route is None or not route.ready or request.version not in ("", str(route.target.version)):
            return not_ready
        answer: bytes = await forward(request, context)
        return answer

    return ready


def _deployed(policy: Callable[[], PolicySnapshot]) -> Callable[[Any], None]:
    def check(request: Any) -> None:
        # A Triton of the user's own may hold models that were never deployed here: they are not ours to show.
        route = policy().routes.get(request.name)
        if route is None:
            raise InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_FOUND, deployment=request.name)
        version = str(route.target.version)
        if request.version not in ("", version):
            raise InferplaneError(
                ErrorReason.ERROR_REASON_MODEL_VERSION_NOT_FOUND, deployment=request.name, version=version
            )

    return check


def _empty(request: Callable[[], Any], _body: bytes) -> Any:
    return request()


async def _refuse(_request: Any, _context: Context) -> bytes:
    raise InferplaneError(ErrorReason.ERROR_REASON_METHOD_REFUSED)
