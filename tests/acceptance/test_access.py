"""Every method of every descriptor, as the servers themselves describe them, without what it asks for."""

import asyncio
from functools import partial
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from inferplane.common.v1.access_pb2 import access
from inferplane.server.access.roles import ROLE_PERMISSIONS
from tests.support.mesh import error_info
from tests.support.up import Up, wait_for

PUBLIC = {
    "/inferplane.auth.v1.AuthService/Login",
    "/inferplane.auth.v1.AuthService/RefreshToken",
    "/inferplane.auth.v1.AuthService/GetJwks",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
}
PUBLIC_SERVICES = ("grpc.health.v1.Health", "grpc.reflection.")
ANYBODY_KNOWN = {
    "/inferplane.auth.v1.AuthService/Logout",
    "/inferplane.auth.v1.AuthService/WhoAmI",
    "/inference.GRPCInferenceService/ServerMetadata",
}
"""The allow-lists of this test: a method that is in neither must refuse a caller without a grant."""


class Method(NamedTuple):
    endpoint: str
    path: str
    request_streaming: bool
    response_streaming: bool


def methods_of(up: Up) -> list[Method]:
    """All methods, by reflection."""
    found = []
    for service in ("auth", "artifact", "inference", "reporting"):
        with grpc.insecure_channel(up.endpoints[service]) as channel:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

            def ask(stub: Any = stub, **question: Any) -> Any:
                return next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)])))

            for entry in ask(list_services="*").list_services_response.service:
                answer = ask(file_containing_symbol=entry.name).file_descriptor_response
                files = [descriptor_pb2.FileDescriptorProto.FromString(data) for data in answer.file_descriptor_proto]
                for file in files:
                    for declared in file.service:
                        if f"{file.package}.{declared.name}" == entry.name:
                            found += [
                                Method(
                                    up.endpoints[service],
                                    f"/{entry.name}/{method.name}",
                                    method.client_streaming,
                                    method.server_streaming,
                                )
                                for method in declared.method
                            ]
    return found


def outcome(method: Method, token: str | None, message: bytes = b"", said: str = "") -> tuple[grpc.StatusCode, str]:
    """Status and reason of a call with that message, or in place of the reason what its metadata has for `said`."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(method.endpoint) as channel:
        kind = (
            ("stream" if method.request_streaming else "unary")
            + "_"
            + ("stream" if method.response_streaming else "unary")
        )
        request: Any = iter([message]) if method.request_streaming else message
        try:
            answer = getattr(channel, kind)(method.path)(request, metadata=metadata, timeout=10)
            if method.response_streaming:
                next(answer, None)
        except grpc.RpcError as error:
            info = error_info(error)
            return error.code(), info.metadata[said] if said else info.reason
    return grpc.StatusCode.OK, ""


@pytest.fixture(scope="module")
def methods(up: Up) -> list[Method]:
    return methods_of(up)


@pytest.fixture(scope="module")
def ungranted(up: Up) -> str:
    """The token of a user who was granted nothing."""

    async def prepare() -> str:
        async with up.admin() as plane:
            await plane.auth.create_user("nobody", "correct horse battery")
            return (await plane.auth.login("nobody", "correct horse battery")).access_token

    return asyncio.run(prepare())


def guarded(methods: list[Method]) -> list[Method]:
    return [
        method
        for method in methods
        if method.path not in PUBLIC and not method.path.removeprefix("/").startswith(PUBLIC_SERVICES)
    ]


def test_the_walk_finds_every_service(methods: list[Method]) -> None:
    """A walk that finds nothing would pass every test below."""
    assert len(guarded(methods)) > 40
    assert {method.path for method in methods} >= (PUBLIC | ANYBODY_KNOWN)


def test_without_a_token_none_passes(methods: list[Method]) -> None:
    outcomes = {method.path: outcome(method, None) for method in guarded(methods)}
    passed = {
        path: got for path, got in outcomes.items() if got != (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")
    }
    assert passed == {}


def test_with_a_token_and_no_grant_none_passes(methods: list[Method], ungranted: str) -> None:
    asked = [method for method in guarded(methods) if method.path not in ANYBODY_KNOWN]
    outcomes = {method.path: outcome(method, ungranted) for method in asked}
    passed = {path: got for path, got in outcomes.items() if got[0] is not grpc.StatusCode.PERMISSION_DENIED}
    assert passed == {}


class Named(NamedTuple):
    """A method whose rule names fields of the request."""

    method: Method
    request: Any
    paths: tuple[str, ...]


def named(methods: list[Method]) -> list[Named]:
    pool: Any = descriptor_pool.Default()  # type: ignore[no-untyped-call] # their stubs
    found = []
    for method in methods:
        service, _, name = method.path.removeprefix("/").rpartition("/")
        if not service.startswith("inferplane."):
            continue
        descriptor = pool.FindMethodByName(f"{service}.{name}")
        rule = descriptor.GetOptions().Extensions[access].permission
        if rule.fields.paths:
            request = message_factory.GetMessageClass(descriptor.input_type)
            found.append(Named(method, request, tuple(rule.fields.paths)))
    return found


def put(message: Any, path: str, value: str) -> None:
    """Set the field that the path leads to, of one element where there are several."""
    step, _, rest = path.partition(".")
    if not rest:
        setattr(message, step, value)
        return
    field = getattr(message, step)
    put(field.add() if hasattr(field, "add") else field, rest, value)


@pytest.fixture(scope="module")
def of_other_things(up: Up) -> str:
    """The token of a user who has every role on other things than the test's."""

    async def prepare() -> str:
        async with up.admin() as plane:
            await plane.auth.create_user("elsewhere", "correct horse battery")
            for role in ROLE_PERMISSIONS:
                await plane.auth.grant(role, to="elsewhere", on="other-*")
            return (await plane.auth.login("elsewhere", "correct horse battery")).access_token

    return asyncio.run(prepare())


def asked(method: Named, token: str, mine: str | None) -> tuple[grpc.StatusCode, str]:
    """Status, and the resource of a denial, of a call whose names are of other things, but for the field `mine`."""
    request = method.request()
    for path in method.paths:
        put(request, path, "mine" if path == mine else "other-x")
    return outcome(method.method, token, request.SerializeToString(), "resource")


def passes(method: Named, token: str) -> bool:
    return asked(method, token, None)[0] is not grpc.StatusCode.PERMISSION_DENIED


def test_a_grant_on_other_things_opens_nothing(methods: list[Method], of_other_things: str) -> None:
    walked = named(methods)
    assert len(walked) > 15
    for method in walked:
        # The grants have arrived, and the call passes where all names are covered: else the rest would show nothing.
        wait_for(partial(passes, method, of_other_things), 10)
        for path in method.paths:
            got = asked(method, of_other_things, path)
            assert got == (grpc.StatusCode.PERMISSION_DENIED, "mine"), (method.method.path, path)
