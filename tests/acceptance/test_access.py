"""Every method of every descriptor, as the servers themselves describe them, without what it asks for."""

import asyncio
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.mesh import error_info
from tests.support.up import Up

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


def outcome(method: Method, token: str | None) -> tuple[grpc.StatusCode, str]:
    """Status and reason of a call with an empty message."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(method.endpoint) as channel:
        kind = (
            ("stream" if method.request_streaming else "unary")
            + "_"
            + ("stream" if method.response_streaming else "unary")
        )
        request: Any = iter([b""]) if method.request_streaming else b""
        try:
            answer = getattr(channel, kind)(method.path)(request, metadata=metadata, timeout=10)
            if method.response_streaming:
                next(answer, None)
        except grpc.RpcError as error:
            return error.code(), error_info(error).reason
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
