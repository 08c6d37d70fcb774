"""The connection to Triton: calls that carry its header, and its errors in our terms."""

import re
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from tritonclient.grpc import service_pb2, service_pb2_grpc

from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.deployments import Served
from inferplane.server.inference.direct_call import Unary, direct_unary
from inferplane.server.inference.formats.onnx import DIGEST_PARAMETER
from inferplane.server.inference.two_step_call import Begin, two_step_unary

__all__ = ["SERVICE", "RawCall", "TritonLink", "control_problem", "from_triton", "refused_size", "said"]

log = structlog.get_logger()

SERVICE = "inference.GRPCInferenceService"
CHECK_TIMEOUT = 2.0
MAX_DETAIL = 200
MAX_SAID = 400

_NOT_EXPLICIT = re.compile(r"explicit model load / unload is not allowed")
_LARGER = re.compile(r"CLIENT: Received message larger than max \((\d+) vs\. (\d+)\)")
_FOLDER = re.compile(r"(?<![\w.])/(?:[\w.+@-]+/)+")
_TRACEBACK = re.compile(r"\s+At:\s+/")
NOBODY = "_inferplane_nobody"
"""A name that no deployment can have."""

RawCall = Callable[..., Any]


class TritonLink:
    """Channels to Triton. `header` is the metadata that it wants, which never goes back to callers."""

    def __init__(self, endpoint: str, header: tuple[str, str] | None, max_message_size: int) -> None:
        self.endpoint = endpoint
        options = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", max_message_size),
            ("grpc.max_send_message_length", -1),
            # Triton comes back within seconds of its end; the default waits up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self.channel = grpc.aio.insecure_channel(endpoint, options=options)
        # Without the option gRPC takes in ever more of what nobody has asked to read. The other channel goes without
        # it, or its answers would come at 64 KiB a round trip.
        self._unhurried = grpc.aio.insecure_channel(endpoint, options=[*options, ("grpc.http2.bdp_probe", 0)])
        self.metadata: tuple[tuple[str, str], ...] = (header,) if header else ()
        self.stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def raw_unary(self, method: str) -> RawCall:
        """A unary method of Triton's from bytes to bytes."""
        return self.channel.unary_unary(f"/{SERVICE}/{method}")

    def predictions(self) -> Unary:
        """ModelInfer from bytes to bytes, at the least cost."""
        return direct_unary(self.channel, f"/{SERVICE}/ModelInfer")

    def predictions_in_two_steps(self) -> Begin:
        """The same, where an answer stays with Triton until it is read."""
        return two_step_unary(self._unhurried, f"/{SERVICE}/ModelInfer")

    async def close(self) -> None:
        """End all that is under way."""
        await self.channel.close()
        await self._unhurried.close()

    async def live(self) -> bool:
        """Whether Triton answers. Not whether it is ready: for that it waits for every model that is being loaded."""
        try:
            answer = await self.stub.ServerLive(
                service_pb2.ServerLiveRequest(), metadata=self.metadata, timeout=CHECK_TIMEOUT
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.live)

    async def model_ready(self, name: str, version: int) -> bool:
        """Whether Triton serves this version under this name."""
        request = service_pb2.ModelReadyRequest(name=name, version=str(version))
        try:
            answer = await self.stub.ModelReady(request, metadata=self.metadata, timeout=CHECK_TIMEOUT)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def served(self, name: str) -> Served | None:
        """What Triton answers with under a name; None if nothing. Raises AioRpcError where it cannot say."""
        request = service_pb2.ModelConfigRequest(name=name)
        try:
            answer = await self.stub.ModelConfig(request, metadata=self.metadata, timeout=CHECK_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return None
            raise
        config = answer.config
        versions = config.version_policy.specific.versions
        if len(versions) != 1:
            return None
        asked = service_pb2.ModelReadyRequest(name=name, version=str(versions[0]))
        if not (await self.stub.ModelReady(asked, metadata=self.metadata, timeout=CHECK_TIMEOUT)).ready:
            return None
        return Served(str(config.parameters[DIGEST_PARAMETER].string_value), int(versions[0]))

    async def control_problem(self) -> str:
        """Why Triton would not let itself be told what to serve, for people; empty where it would.

        Asked by unloading a model that cannot exist, which changes nothing. Raises AioRpcError where it is away.
        """
        request = service_pb2.RepositoryModelUnloadRequest(model_name=NOBODY)
        try:
            await self.stub.RepositoryModelUnload(request, metadata=self.metadata, timeout=CHECK_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            problem = control_problem(error.details() or "")
            if not problem and error.code() is grpc.StatusCode.UNAVAILABLE:
                raise
            return problem or said(error.details() or error.code().name)
        return ""


def said(text: str) -> str:
    """What Triton said, for people: on one line, bounded, without tracebacks and the folders of its machine."""
    line = " ".join(_FOLDER.sub("", _TRACEBACK.split(text)[0]).split())
    return "".join(char if char.isprintable() else "?" for char in line)[:MAX_SAID]


def control_problem(details: str) -> str:
    """Why Triton does not take models from us, if it is that what `details` says; else empty."""
    if _NOT_EXPLICIT.search(details) is None:
        return ""
    return f"Triton takes no models: start it with --model-control-mode=explicit (it said: {said(details)})"


def refused_size(error: BaseException) -> int:
    """The bytes of an answer that had more than are taken; 0 where something else failed."""
    size, _ = _sizes(error)
    return size


def _sizes(error: BaseException) -> tuple[int, int]:
    """Of an answer that was refused for it, and what is taken."""
    if not isinstance(error, grpc.aio.AioRpcError) or error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return 0, 0
    said = _LARGER.search(error.details() or "")
    return (int(said[1]), int(said[2])) if said else (0, 0)


def from_triton(error: grpc.aio.AioRpcError) -> InferplaneError:
    """What Triton answered, in our terms. Only where it speaks of the input does its text go on."""
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            detail = said(error.details() or "")[:MAX_DETAIL]
            return InferplaneError(ErrorReason.ERROR_REASON_INFERENCE_REJECTED, detail=detail)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return InferplaneError(ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED)
        case grpc.StatusCode.NOT_FOUND:
            return InferplaneError(ErrorReason.ERROR_REASON_DEPLOYMENT_NOT_READY, retry_after=1.0)
        case grpc.StatusCode.UNAVAILABLE:
            return InferplaneError(
                ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE, retry_after=1.0, dependency="triton"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            size, most = _sizes(error)
            if not size:
                return InferplaneError(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE)
            detail = f"the answer has {size} bytes, {most} are allowed"
            return InferplaneError(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, detail=detail)
        case _:
            private = f"Triton: {error.code().name}: {(error.details() or '')[:500]}"
            return InferplaneError(ErrorReason.ERROR_REASON_INFERENCE_FAILED, private=private)
