"""Login, refresh, logout, and who one is."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from inferplane.auth.v1 import auth_service_pb2 as pb
from inferplane.server.auth.sessions import MAX_FAILURES
from inferplane.server.settings import ServiceName, Settings
from tests.support.mesh import ADMIN, PASSWORD, Mesh, bearer, failure, reason, running_mesh


@pytest.fixture
async def mesh(settings: Settings) -> AsyncIterator[Mesh]:
    async with running_mesh(settings, ServiceName.AUTH) as mesh:
        yield mesh


async def open_session(mesh: Mesh) -> Any:
    return (await mesh.auth.Login(pb.LoginRequest(username=ADMIN, password=PASSWORD))).tokens


async def test_login_proves_who_one_is(mesh: Mesh) -> None:
    answer = await mesh.auth.WhoAmI(pb.WhoAmIRequest(), metadata=await mesh.login())
    assert answer.identity.subject == f"users/{ADMIN}"
    assert [(role.role, role.scope) for role in answer.identity.roles] == [("admin", "*")]


@pytest.mark.parametrize("username", [ADMIN, "nobody"])
async def test_wrong_password_and_unknown_user_fail_alike(mesh: Mesh, username: str) -> None:
    error = await failure(mesh.auth.Login(pb.LoginRequest(username=username, password="wrong")))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAUTHENTICATED, "wrong username or password")


async def test_too_many_failures_are_throttled_and_the_right_password_with_them(mesh: Mesh) -> None:
    for _ in range(MAX_FAILURES):
        await failure(mesh.auth.Login(pb.LoginRequest(username=ADMIN, password="wrong")))
    call = mesh.auth.Login(pb.LoginRequest(username=ADMIN, password=PASSWORD))
    assert await reason(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")


async def test_refresh_answers_new_tokens_that_work(mesh: Mesh) -> None:
    tokens = await open_session(mesh)
    fresh = (await mesh.auth.RefreshToken(pb.RefreshTokenRequest(refresh_token=tokens.refresh_token))).tokens
    assert fresh.refresh_token != tokens.refresh_token
    await mesh.auth.WhoAmI(pb.WhoAmIRequest(), metadata=bearer(fresh.access_token))


async def test_reuse_of_a_refresh_token_ends_the_session(mesh: Mesh) -> None:
    tokens = await open_session(mesh)
    old = pb.RefreshTokenRequest(refresh_token=tokens.refresh_token)
    fresh = (await mesh.auth.RefreshToken(old)).tokens
    assert await reason(mesh.auth.RefreshToken(old)) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "REFRESH_TOKEN_REUSED",
    )
    new = pb.RefreshTokenRequest(refresh_token=fresh.refresh_token)
    assert await reason(mesh.auth.RefreshToken(new)) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED")


async def test_of_concurrent_uses_of_a_refresh_token_one_succeeds(mesh: Mesh) -> None:
    tokens = await open_session(mesh)
    request = pb.RefreshTokenRequest(refresh_token=tokens.refresh_token)
    outcomes = await asyncio.gather(*(mesh.auth.RefreshToken(request) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(outcome, pb.RefreshTokenResponse) for outcome in outcomes) == 1


async def test_logout_makes_the_refresh_token_worthless(mesh: Mesh) -> None:
    tokens = await open_session(mesh)
    await mesh.auth.Logout(pb.LogoutRequest(), metadata=bearer(tokens.access_token))
    request = pb.RefreshTokenRequest(refresh_token=tokens.refresh_token)
    assert await reason(mesh.auth.RefreshToken(request)) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED")


async def test_unknown_refresh_token_is_refused(mesh: Mesh) -> None:
    request = pb.RefreshTokenRequest(refresh_token="ipr_unheard-of")
    assert await reason(mesh.auth.RefreshToken(request)) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "CREDENTIALS_INVALID",
    )


async def test_jwks_holds_no_private_half(mesh: Mesh) -> None:
    jwks = (await mesh.auth.GetJwks(pb.GetJwksRequest())).jwks_json
    assert '"kty"' in jwks
    assert '"d"' not in jwks
