"""Services in this process, on ports of their own, as a test needs them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from inferplane.auth.v1 import auth_service_pb2 as auth_pb
from inferplane.auth.v1 import identity_service_pb2 as identity_pb
from inferplane.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from inferplane.auth.v1.identity_service_pb2_grpc import IdentityServiceStub
from inferplane.server.auth.first_admin import create_first_admin
from inferplane.server.bootstrap import RunningService, run_service
from inferplane.server.settings import ServiceName, Settings

ADMIN = "root"
PASSWORD = "correct horse battery staple"

START_ORDER = (ServiceName.AUTH, ServiceName.ARTIFACT, ServiceName.REPORTING, ServiceName.INFERENCE)

Metadata = list[tuple[str, str]]


@dataclass
class Mesh:
    """The running services and ways to call them."""

    settings: Settings
    services: dict[ServiceName, RunningService] = field(default_factory=dict)
    channels: dict[ServiceName, grpc.aio.Channel] = field(default_factory=dict)

    @property
    def auth(self) -> Any:
        return AuthServiceStub(self.channels[ServiceName.AUTH])

    @property
    def identity(self) -> Any:
        return IdentityServiceStub(self.channels[ServiceName.AUTH])

    async def login(self, username: str = ADMIN, password: str = PASSWORD) -> Metadata:
        """Metadata that proves to be `username`."""
        answer = await self.auth.Login(auth_pb.LoginRequest(username=username, password=password))
        return bearer(answer.tokens.access_token)

    async def user(self, username: str, **grants: str) -> Metadata:
        """Make a user with `role=scope` grants, wait until every service knows of them, and log in."""
        admin = await self.login()
        await self.identity.CreateUser(
            identity_pb.CreateUserRequest(user_id=username, password=PASSWORD), metadata=admin
        )
        for role, scope in grants.items():
            await self.grant(username, role, scope)
        return await self.login(username)

    async def grant(self, username: str, role: str, scope: str) -> None:
        """Give a role and wait until every service knows of it."""
        request = identity_pb.GrantRoleRequest(subject=f"users/{username}", role=role, scope=scope)
        await self.identity.GrantRole(request, metadata=await self.login())
        await self.until_policy(
            lambda snapshot: any((g.role, g.scope) == (role, scope) for g in snapshot.grants_of(f"users/{username}"))
        )

    async def until_policy(self, condition: Callable[[Any], bool]) -> None:
        """Wait until `condition` holds of every service's snapshot."""
        await until(lambda: all(condition(service.policy.snapshot) for service in self.services.values()))


@asynccontextmanager
async def running_mesh(settings: Settings, *services: ServiceName) -> AsyncIterator[Mesh]:
    """Start `services` with an administrator, and stop them."""
    await create_first_admin(settings, ADMIN, PASSWORD)
    mesh = Mesh(settings)
    async with AsyncExitStack() as stack:
        for service in START_ORDER:
            if service in services:
                running = await stack.enter_async_context(run_service(service, mesh.settings, "127.0.0.1:0"))
                address = f"127.0.0.1:{running.ports[0]}"
                endpoints = {**mesh.settings.endpoints, service: address}
                mesh.settings = mesh.settings.model_copy(update={"endpoints": endpoints})
                mesh.services[service] = running
                mesh.channels[service] = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield mesh


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait until `condition` holds; TimeoutError after `timeout` seconds."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110 - what is waited for may be in another process
            await asyncio.sleep(0.01)


def bearer(token: str) -> Metadata:
    """Metadata that carries `token`."""
    return [("authorization", f"Bearer {token}")]


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of a failed call; fails where there is none."""
    info = error_details_pb2.ErrorInfo()
    assert detail(error, info), f"no ErrorInfo in {error}"
    return info


def detail(error: Any, message: Any) -> bool:
    """Unpack the status detail of `message`'s type into it; whether there is one."""
    status = rpc_status.from_call(error)
    return status is not None and any(packed.Unpack(message) for packed in status.details)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error that `call` (awaitable or stream) ends with."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call succeeded")


async def reason(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status code and the ErrorInfo reason that `call` fails with."""
    error = await failure(call)
    return error.code(), error_info(error).reason
