"""A server with few parts: the pipeline and methods whose behaviour the test chooses, and tokens that name users."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2

from inferplane.auth.v1 import auth_service_pb2 as pb
from inferplane.common.v1.errors_pb2 import ErrorReason
from inferplane.inference.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from inferplane.server.access.admission import Admission
from inferplane.server.access.snapshot import EMPTY, GrantRow, PolicySnapshot, Route, Target
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import Principal
from inferplane.server.identity.verification import Verifier
from inferplane.server.inference.dataplane.forwarder import Forwarder
from inferplane.server.inference.dataplane.handlers import fused_handlers
from inferplane.server.inference.dataplane.outcome import Outcomes
from inferplane.server.inference.dataplane.under_way import Window
from inferplane.server.inference.dataplane.unread import UnreadAnswers
from inferplane.server.inference.records.notes import Notes
from inferplane.server.inference.service import InferenceService
from inferplane.server.inference.triton_link import SERVICE, TritonLink
from inferplane.server.inference.typed_tensors import check_typed_size
from inferplane.server.rpc.interceptors import Guards
from inferplane.server.rpc.interceptors.deadlines import DeadlinePolicy
from inferplane.server.rpc.server import RpcServer
from inferplane.server.settings import Settings
from inferplane.server.tensors import Signature, TensorSpec
from tests.support.paths import INFER, STREAM, WHO
from tests.support.policy import compile_snapshot

LIMIT = 64 << 20
FORGED = "forged"
EMPTY_BODY = bytes(5)
"""An empty message, as it goes over the wire."""


class AnyToken(Verifier):
    """Takes `Bearer NAME` as proof of being the user NAME, in the session `sessions/NAME`, until `expires_at` (seconds
    since the epoch). `FORGED` is a token that proves nothing."""

    def __init__(self) -> None:
        """Needs no keys."""
        self.expires_at = float("inf")

    def remembered(self, token: str) -> Principal | None:
        return None

    async def verify(self, token: str, address: Callable[[], str] = str) -> Principal:
        if token == FORGED:
            raise InferplaneError(ErrorReason.ERROR_REASON_CREDENTIALS_INVALID)
        return Principal(f"users/{token}", f"sessions/{token}", expires_at=self.expires_at)


def as_user(user: str = "alice") -> list[tuple[str, str]]:
    """Metadata of a user's call."""
    return [("authorization", f"Bearer {user}")]


class Waiting:
    """WhoAmI, which answers once `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.now = 0
        self.most = 0

    async def __call__(self, _request: Any, _context: Any) -> pb.WhoAmIResponse:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.go.wait()
        self.now -= 1
        return pb.WhoAmIResponse()


class Stand:
    """A running server, a channel to it and its metrics."""

    def __init__(self, server: RpcServer, address: str, channel: grpc.aio.Channel, registry: CollectorRegistry) -> None:
        self.server = server
        self.address = address
        self.channel = channel
        self.registry = registry

    def call(self, data: bytes = b"", path: str = WHO, user: str = "alice", **options: Any) -> Any:
        method: Any = self.channel.unary_unary(path)
        return method(data, metadata=as_user(user), **options)

    def count(self, name: str, **labels: str) -> float:
        """A counter's value; 0 where it is not there yet."""
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def running(
    register: Callable[[RpcServer, Admission, CollectorRegistry], None],
    policy: Callable[[], PolicySnapshot] = lambda: EMPTY,
    verifier: Verifier | None = None,
    *,
    unary: float = 30,
    idle: float = 30,
    max_message_size: int = LIMIT,
    host: str = "127.0.0.1",
    **settings: Any,
) -> AsyncIterator[Stand]:
    """A server on which `register` has put its methods."""
    registry = CollectorRegistry()
    admission = Admission(verifier or AnyToken(), policy)
    guards = Guards(admission=admission, deadlines=DeadlinePolicy(unary, idle, 0), registry=registry)
    chosen = Settings(**{"drain_grace": 5, "unary_deadline": unary, **settings})
    server = RpcServer(chosen, guards, max_message_size=max_message_size)
    register(server, admission, registry)
    (port,) = await server.start(f"{host}:0")
    sweeping = [asyncio.create_task(sweep()) for sweep in (server.bodies.sweep, server.calls.sweep)]
    address = f"{host}:{port}"
    options = [("grpc.max_receive_message_length", LIMIT), ("grpc.max_send_message_length", LIMIT)]
    try:
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            yield Stand(server, address, channel, registry)
    finally:
        await server.stop()
        for task in sweeping:
            task.cancel()


def who_am_i(behaviour: Any) -> Callable[[RpcServer, Admission, CollectorRegistry], None]:
    """Registers `behaviour` as the method WhoAmI, for any user."""
    handler = grpc.unary_unary_rpc_method_handler(
        behaviour, pb.WhoAmIResponse.FromString, pb.WhoAmIResponse.SerializeToString
    )

    def register(server: RpcServer, _admission: Admission, _registry: CollectorRegistry) -> None:
        server.add_handlers("inferplane.auth.v1.AuthService", {"WhoAmI": handler}, ())

    return register


SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))


def target(version: int = 1, signature: Signature = SIGNATURE, label_output: str = "") -> Target:
    """A version of the model `m`."""
    return Target("m", version, f"sha256:{version:064}", signature, label_output)


class Triton:
    """Stands in for Triton where a real one would not lie, break or wait on command: it answers what `answer` makes."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.cancelled = 0
        """How many of them nobody wanted answered any more."""
        self.answer: Callable[[service_pb2.ModelInferRequest], Any] = echo

    async def infer(self, body: bytes, context: Any) -> bytes:
        self.requests.append(body)
        answer = self.answer(service_pb2.ModelInferRequest.FromString(body))
        if hasattr(answer, "__await__"):
            try:
                answer = await answer
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "what Triton says")
        return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())


def echo(request: service_pb2.ModelInferRequest, version: str = "1") -> service_pb2.ModelInferResponse:
    """The input given back as `y`."""
    answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=version, id=request.id)
    answer.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
    answer.raw_output_contents.append(request.raw_input_contents[0])
    return answer


def infer_request(name: str = "m", values: int = 1, **fields: Any) -> service_pb2.ModelInferRequest:
    """A request that the model takes."""
    message = service_pb2.ModelInferRequest(model_name=name, **fields)
    message.inputs.add(name="x", datatype="FP32", shape=[values])
    message.raw_input_contents.append(bytes(4 * values))
    return message


class DataPlane(Stand):
    """The two methods of predictions in front of a Triton that does as it is told. `routes` and `grants` may change."""

    triton: Triton
    notes: Notes
    forwarder: Forwarder
    unread: UnreadAnswers
    verifier: AnyToken
    routes: list[Route]
    grants: list[GrantRow]
    revoked: list[str]

    async def infer(self, message: Any = None, user: str = "alice", **options: Any) -> service_pb2.ModelInferResponse:
        body = message if isinstance(message, bytes) else (message or infer_request()).SerializeToString()
        return service_pb2.ModelInferResponse.FromString(await self.call(body, INFER, user, **options))

    def stream(self, user: str = "alice") -> Any:
        method: Any = self.channel.stream_stream(STREAM)
        return method(metadata=as_user(user))


@asynccontextmanager
async def data_plane(
    routes: Iterable[Route] | None = None, window: Window | None = None, **options: Any
) -> AsyncIterator[DataPlane]:
    """The data plane, where `alice` and `bob` may call everything and `eve` nothing."""
    triton = Triton()
    parts: dict[str, Any] = {}
    upstream = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMIT)])
    handlers: dict[str, Any] = {"ModelInfer": grpc.unary_unary_rpc_method_handler(triton.infer)}
    upstream.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = upstream.add_insecure_port("127.0.0.1:0")
    await upstream.start()
    link = TritonLink(f"127.0.0.1:{port}", None, LIMIT)
    verifier = AnyToken()
    held: list[Route] = list(routes) if routes is not None else [Route("m", target(), ready=True)]
    grants = [GrantRow(f"users/{user}", "caller", "*") for user in ("alice", "bob")]
    revoked: list[str] = []

    def register(server: RpcServer, admission: Admission, registry: CollectorRegistry) -> None:
        notes = parts["notes"] = Notes(registry)
        outcomes = Outcomes(notes, registry)
        unread = parts["unread"] = UnreadAnswers()
        forwarder = parts["forwarder"] = Forwarder(link, admission, outcomes, unread, 30, window)
        idle = options.get("idle", 30)
        fused = fused_handlers(forwarder, admission, outcomes, server.calls, server.bodies, unread, idle)
        server.add_handlers(SERVICE, {}, (), fused=fused)
        typed = InferenceService(forwarder, unread)
        server.add_service(add_InferenceServiceServicer_to_server, typed, (), checks={"Predict": check_typed_size})

    def policy() -> PolicySnapshot:
        return compile_snapshot(1, grants, held, revoked)

    try:
        async with running(register, policy, verifier, **options) as stand:
            plane = DataPlane(stand.server, stand.address, stand.channel, stand.registry)
            plane.triton, plane.notes, plane.verifier = triton, parts["notes"], verifier
            plane.routes, plane.grants, plane.revoked = held, grants, revoked
            plane.forwarder = parts["forwarder"]
            plane.unread = parts["unread"]
            yield plane
    finally:
        await link.close()
        await upstream.stop(0)
