"""The one server factory: a grpc.aio server with the pipeline, health, reflection, limits and a graceful stop."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from inferplane.server.rpc import health
from inferplane.server.rpc.intake.arrivals import Arrivals
from inferplane.server.rpc.intake.bodies import BodyReader
from inferplane.server.rpc.intake.sockets import Sockets
from inferplane.server.rpc.interceptors import Guards, interceptors
from inferplane.server.rpc.pipeline import BodyCheck, Handler, Handlers, Pipeline, at_most
from inferplane.server.rpc.running import RunningCalls
from inferplane.server.rpc.standard_protos import LayeredPool
from inferplane.server.settings import Settings

__all__ = ["RpcServer"]

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
METADATA_LIMIT = 16 << 10
"""As gRPC counts, with 32 bytes an entry; by its usual limits no more passes either. An entry that was sent before is
one byte on the wire and takes some 170: with a limit of 64 KiB, calls of 2 KiB took 320 each."""
LOOKAHEAD = 64 << 10
ROOM = 4 << 10
"""Bytes by which what is sent may exceed what is taken: those that the data plane appends to an answer of Triton's."""
NO_COMPRESSION = 1
"""The bit of `identity`, alone (grpc/impl/compression_types.h)."""
STREAM_GRACE = 15.0
MAX_CONNECTION_IDLE_MS = 600_000
HANDSHAKE_MS = 10_000
USUAL_BODY = 1 << 20
"""Bytes of a request where its service allows no more: to parse 4 MiB of empty parts would take half a second."""
PUBLIC_BODY = 16 << 10
"""The same of methods that anybody may call; the longest has a password and a token."""
LAST_WORDS = 0.2


def channel_arguments(settings: Settings, max_message_size: int) -> list[tuple[str, int]]:
    """Limits of every connection."""
    return [
        ("grpc.max_receive_message_length", max_message_size),
        ("grpc.max_send_message_length", max_message_size + ROOM),
        # Both the same: in between, gRPC rejects at random. Over-long tokens below it get a precise answer.
        ("grpc.max_metadata_size", METADATA_LIMIT),
        ("grpc.absolute_max_metadata_size", METADATA_LIMIT),
        # What nobody has read yet of a body stays small: 64 KiB a stream, whatever the network could carry.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", LOOKAHEAD),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        # Calls that have been answered, but not let go of yet, count as well; without room for them gRPC refuses those
        # that its clients have kept back until then.
        ("grpc.http2.max_deallocating_streams", settings.max_streams_per_connection),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        # A stranger's 32 KiB would be 32 MiB here before anybody has looked at them.
        ("grpc.compression_enabled_algorithms_bitset", NO_COMPRESSION),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # They are answered, at little cost. To refuse those that are too many takes gRPC two seconds for the 60,000 of
        # one megabyte, and four times as long for twice as many.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_connection_idle_ms", MAX_CONNECTION_IDLE_MS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_connection_age_ms", int(settings.max_connection_age * 1000)),
        # Streams are ended by us, with a reason, when they are as old; gRPC just cuts what is left then.
        ("grpc.max_connection_age_grace_ms", int((settings.max_connection_age + STREAM_GRACE) * 1000)),
        ("grpc.so_reuseport", 1),
        ("grpc.enable_channelz", 0),
    ]


class _HandlerCollector:
    """Stands in for the server in generated `add_…Servicer_to_server` functions, to get at their handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Mapping[str, Handler]] = {}

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """The registered handlers below say the same with names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        self.handlers[service] = handlers


class RpcServer:
    """Register services, start, stop. `health` is its board; `bodies.sweep` and `calls.sweep` must run beside it."""

    def __init__(self, settings: Settings, guards: Guards, *, max_message_size: int) -> None:
        self.health = health.HealthBoard()
        self.calls = RunningCalls(settings.max_connection_age)
        self.arrivals = Arrivals(settings.slow_body_budget, settings.unary_deadline, lambda: self.calls.open, Sockets())
        self.bodies = BodyReader(self.arrivals)
        self._pipeline = Pipeline(
            interceptors(guards),
            guards.deadlines.pace,
            self.calls,
            self.bodies,
            at_most(USUAL_BODY),
            at_most(PUBLIC_BODY),
        )
        self._handlers = Handlers(self._pipeline)
        self._server = grpc.aio.server(options=channel_arguments(settings, max_message_size))
        self._services: list[str] = []
        self._grace = settings.drain_grace

    def add_service(
        self,
        register: Callable[[Any, Any], None],
        servicer: object,
        needs: tuple[str, ...],
        *,
        checks: Mapping[str, BodyCheck] | None = None,
    ) -> None:
        """Register a servicer by its generated function; `needs` names what its health depends on, `checks` what the
        bodies of some of its methods must pass in place of the usual limit."""
        collector = _HandlerCollector()
        register(servicer, collector)
        for service, handlers in collector.handlers.items():
            self.add_handlers(service, handlers, needs, checks=checks)

    def add_handlers(
        self,
        service: str,
        handlers: Mapping[str, Handler],
        needs: tuple[str, ...],
        *,
        fused: Mapping[str, Handler] | None = None,
        checks: Mapping[str, BodyCheck] | None = None,
    ) -> None:
        """Register handlers by name. Those in `fused` do the interceptors' work themselves."""
        wrapped = self._pipeline.wrap_service(service, handlers, checks) | dict(fused or {})
        self._handlers.add(service, wrapped)
        self._services.append(service)
        self.health.add(service, needs)

    async def start(self, *addresses: str) -> list[int]:
        """Add health and reflection, listen on `addresses` (`host:port`), and answer their ports."""
        self.health.add("", self._main_needs())
        self._add_standard_services()
        self._server.add_generic_rpc_handlers((self._handlers,))
        ports = [self._server.add_insecure_port(address) for address in addresses]
        await self._server.start()
        return ports

    async def stop(self) -> None:
        """Accepted unary calls finish, streams end with UNAVAILABLE; returns when no handler runs any more."""
        self.health.drain()
        stopping = asyncio.ensure_future(self._server.stop(self._grace))
        await self.calls.end_streams(LAST_WORDS)
        await stopping
        # The server returns before the handlers of calls that it aborted are through.
        await self.calls.finished()

    def _main_needs(self) -> frozenset[str]:
        return self.health.needs(self._services[0]) if self._services else frozenset()

    def _add_standard_services(self) -> None:
        names = [*self._services, health.SERVICE, REFLECTION_V1, reflection.SERVICE_NAME]
        servicer = reflection.aio.ReflectionServicer(names, pool=LayeredPool())
        collector = _HandlerCollector()
        register: Callable[[Any, Any], None] = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        register(servicer, collector)
        (handlers,) = collector.handlers.values()
        standard = {
            health.SERVICE: health.health_handlers(self.health),
            REFLECTION_V1: handlers,
            reflection.SERVICE_NAME: handlers,
        }
        for service, methods in standard.items():
            self._handlers.add(service, self._pipeline.wrap_service(service, methods))
