"""Channels to the other services."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import grpc

from inferplane.auth.v1.auth_service_pb2 import GetJwksRequest
from inferplane.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from inferplane.server.settings import ServiceName, Settings

__all__ = ["channel_to", "jwks_of_auth"]

JWKS_TIMEOUT = 3.0


def channel_to(service: ServiceName, settings: Settings, stack: AsyncExitStack) -> grpc.aio.Channel:
    """A channel to another service, closed with `stack`; ValueError where no setting says where it is."""
    address = settings.endpoints.get(service)
    if address is None:
        raise ValueError(f"no endpoint: set INFERPLANE_ENDPOINTS__{service.name} to its host:port")
    # A proxy of the environment is for the outside: tokens must not pass through it.
    channel = grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    stack.push_async_callback(channel.close)
    return channel


def jwks_of_auth(settings: Settings, stack: AsyncExitStack) -> Callable[[], Awaitable[str]]:
    """Fetches Auth's public keys, as a JSON Web Key Set."""
    # Lazily: Auth itself has no endpoint to reach its own keys at, and needs none.
    stub: AuthServiceStub | None = None

    async def fetch() -> str:
        nonlocal stub
        stub = stub or AuthServiceStub(channel_to(ServiceName.AUTH, settings, stack))
        return (await stub.GetJwks(GetJwksRequest(), timeout=JWKS_TIMEOUT)).jwks_json

    return fetch
