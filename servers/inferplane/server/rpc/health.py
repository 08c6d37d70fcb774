"""The standard health service, driven by the dependencies that each service really has."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from inferplane.server.rpc.call import current_call
from inferplane.server.rpc.standard_protos import HealthListRequest, HealthListResponse

__all__ = ["SERVICE", "HealthBoard", "health_handlers"]

SERVICE = "grpc.health.v1.Health"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthBoard:
    """Which services serve. A service serves while all its dependencies are up and the server is not draining.

    The empty name stands for the server as a whole, which is its main service.
    """

    def __init__(self) -> None:
        self._needs: dict[str, frozenset[str]] = {}
        self._up: set[str] = set()
        self._draining = False
        self._changed = asyncio.Event()

    def add(self, service: str, needs: Iterable[str] = ()) -> None:
        """Add a service and the names of what it cannot do without."""
        self._needs[service] = frozenset(needs)
        self._notify()

    def needs(self, service: str) -> frozenset[str]:
        """What `service` cannot do without."""
        return self._needs[service]

    def report(self, dependency: str, up: bool) -> None:
        """Note that a dependency went away or came back."""
        (self._up.add if up else self._up.discard)(dependency)
        self._notify()

    def drain(self) -> None:
        """Nothing serves from now on."""
        self._draining = True
        self._notify()

    def serving(self, service: str) -> bool | None:
        """Whether `service` serves; None if there is none of that name."""
        needs = self._needs.get(service)
        return None if needs is None else not self._draining and needs <= self._up

    @property
    def statuses(self) -> dict[str, bool]:
        """All services."""
        return {service: bool(self.serving(service)) for service in self._needs}

    async def changes(self, service: str) -> AsyncIterator[bool | None]:
        """The present status of `service`, then each new one."""
        last: object = object()
        while True:
            changed = self._changed
            present = self.serving(service)
            if present is not last:
                last = present
                yield present
            await changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _response(serving: bool | None) -> health_pb2.HealthCheckResponse:
    status = _UNKNOWN if serving is None else _SERVING if serving else _NOT_SERVING
    return health_pb2.HealthCheckResponse(status=status)


class _HealthService:
    def __init__(self, board: HealthBoard) -> None:
        self._board = board

    async def check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        serving = self._board.serving(request.service)
        if serving is None:
            # The protocol asks for this bare status.
            current_call().code = grpc.StatusCode.NOT_FOUND
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _response(serving)

    async def watch(
        self, request: health_pb2.HealthCheckRequest, _context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        async for serving in self._board.changes(request.service):
            yield _response(serving)

    async def list(self, _request: Any, _context: Any) -> Any:
        response: Any = HealthListResponse()
        for service, serving in self._board.statuses.items():
            response.statuses[service].status = _SERVING if serving else _NOT_SERVING
        return response


def health_handlers(board: HealthBoard) -> dict[str, "grpc.RpcMethodHandler[Any, Any]"]:
    """Handlers of Check, Watch and List."""
    service: Any = _HealthService(board)
    request = health_pb2.HealthCheckRequest.FromString
    serialize = health_pb2.HealthCheckResponse.SerializeToString
    return {
        "Check": grpc.unary_unary_rpc_method_handler(service.check, request, serialize),
        "Watch": grpc.unary_stream_rpc_method_handler(service.watch, request, serialize),
        "List": grpc.unary_unary_rpc_method_handler(
            service.list, HealthListRequest.FromString, HealthListResponse.SerializeToString
        ),
    }
