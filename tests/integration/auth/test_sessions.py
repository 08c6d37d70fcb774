"""Login, refresh, logout, and who one is."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import URL

from inferplane.auth.v1 import auth_service_pb2 as pb
from inferplane.server.access.snapshot import Part
from inferplane.server.auth import login
from inferplane.server.auth.repository import AuthReader
from inferplane.server.auth.sessions import REFRESH_GRACE
from inferplane.server.bootstrap import run_service
from inferplane.server.identity.workloads import WorkloadSigner
from inferplane.server.keys import MasterKey
from inferplane.server.settings import ServiceName, Settings
from inferplane.server.storage import database
from tests.conftest import execute
from tests.support.database import rows
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


async def test_auth_does_not_start_with_another_master_key_than_its_signing_keys_were_sealed_with(
    settings: Settings, tmp_path: Path
) -> None:
    async with running_mesh(settings, ServiceName.AUTH):
        pass
    (tmp_path / "other.key").write_bytes(bytes(MasterKey.SIZE))
    other = settings.model_copy(update={"master_key_file": tmp_path / "other.key"})
    with pytest.raises(ValueError, match="sealed with another master key: restore that key file"):
        async with run_service(ServiceName.AUTH, other, "127.0.0.1:0"):
            pass


async def test_refresh_answers_new_tokens_that_work(mesh: Mesh) -> None:
    tokens = await open_session(mesh)
    fresh = (await mesh.auth.RefreshToken(pb.RefreshTokenRequest(refresh_token=tokens.refresh_token))).tokens
    assert fresh.refresh_token != tokens.refresh_token
    await mesh.auth.WhoAmI(pb.WhoAmIRequest(), metadata=bearer(fresh.access_token))


def refresh(mesh: Mesh, refresh_token: str) -> Any:
    return mesh.auth.RefreshToken(pb.RefreshTokenRequest(refresh_token=refresh_token))


async def test_a_refresh_whose_answer_was_lost_may_be_repeated(mesh: Mesh) -> None:
    old = (await open_session(mesh)).refresh_token
    lost = (await refresh(mesh, old)).tokens.refresh_token
    assert (await refresh(mesh, old)).tokens.refresh_token == lost
    assert (await refresh(mesh, lost)).tokens.refresh_token not in (old, lost)


async def test_reuse_of_a_refresh_token_whose_successor_was_used_ends_the_session(mesh: Mesh) -> None:
    old = (await open_session(mesh)).refresh_token
    newer = (await refresh(mesh, old)).tokens.refresh_token
    newest = (await refresh(mesh, newer)).tokens.refresh_token
    assert await reason(refresh(mesh, old)) == (grpc.StatusCode.UNAUTHENTICATED, "REFRESH_TOKEN_REUSED")
    assert await reason(refresh(mesh, newest)) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED")


async def test_reuse_of_a_refresh_token_after_the_grace_ends_the_session(mesh: Mesh, database_url: URL) -> None:
    old = (await open_session(mesh)).refresh_token
    fresh = (await refresh(mesh, old)).tokens.refresh_token
    age = f"used_at = used_at - interval '{REFRESH_GRACE.total_seconds()} seconds'"
    await execute(database_url, f"UPDATE auth.refresh_token SET {age} WHERE used_at IS NOT NULL")  # noqa: S608 - constants
    assert await reason(refresh(mesh, old)) == (grpc.StatusCode.UNAUTHENTICATED, "REFRESH_TOKEN_REUSED")
    assert await reason(refresh(mesh, fresh)) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED")


async def test_concurrent_uses_of_a_refresh_token_get_one_successor(mesh: Mesh) -> None:
    old = (await open_session(mesh)).refresh_token
    answers = await asyncio.gather(*(refresh(mesh, old) for _ in range(5)))
    (successor,) = {answer.tokens.refresh_token for answer in answers}
    await refresh(mesh, successor)


async def test_no_refresh_token_can_be_read_in_the_database(mesh: Mesh, database_url: URL) -> None:
    old = (await open_session(mesh)).refresh_token
    fresh = (await refresh(mesh, old)).tokens.refresh_token
    query = "SELECT token_hash || coalesce(successor, '') AS all FROM auth.refresh_token"
    stored = b"".join(row["all"] for row in await rows(database_url, query))
    assert old.encode() not in stored
    assert fresh.encode() not in stored


async def test_logout_makes_the_refresh_token_worthless(mesh: Mesh) -> None:
    tokens = await open_session(mesh)
    await mesh.auth.Logout(pb.LogoutRequest(), metadata=bearer(tokens.access_token))
    request = pb.RefreshTokenRequest(refresh_token=tokens.refresh_token)
    assert await reason(mesh.auth.RefreshToken(request)) == (grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED")


async def test_logout_makes_the_access_token_worthless_within_a_second(mesh: Mesh) -> None:
    access = bearer((await open_session(mesh)).access_token)
    other = bearer((await open_session(mesh)).access_token)
    await mesh.auth.Logout(pb.LogoutRequest(), metadata=access)
    await mesh.until_policy(lambda snapshot: len(snapshot.revoked) == 1)
    assert await reason(mesh.auth.WhoAmI(pb.WhoAmIRequest(), metadata=access)) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "SESSION_ENDED",
    )
    await mesh.auth.WhoAmI(pb.WhoAmIRequest(), metadata=other)


async def test_a_session_that_ends_reads_no_other_part_of_policy_again(mesh: Mesh) -> None:
    source = mesh.services[ServiceName.AUTH].policy
    access = bearer((await open_session(mesh)).access_token)
    before = source.snapshot
    await mesh.auth.Logout(pb.LogoutRequest(), metadata=access)
    await mesh.until_policy(lambda snapshot: snapshot.revoked)
    assert source.snapshot.grants is before.grants
    assert set(source.snapshot.revisions) == {Part.GRANTS, Part.REVOKED}


async def test_an_access_token_does_not_outlive_its_session(settings: Settings) -> None:
    short = settings.model_copy(update={"session_lifetime": 60, "access_token_lifetime": 3600})
    async with running_mesh(short, ServiceName.AUTH) as mesh:
        tokens = await open_session(mesh)
    assert tokens.access_token_expire_time.seconds <= tokens.refresh_token_expire_time.seconds


async def test_a_refresh_does_not_shorten_how_long_a_session_is_remembered(mesh: Mesh, database_url: URL) -> None:
    tokens = await open_session(mesh)
    longer = (
        "UPDATE auth.session SET tokens_expire_at = tokens_expire_at + interval '1 hour' RETURNING tokens_expire_at"
    )
    before = await rows(database_url, longer)
    await refresh(mesh, tokens.refresh_token)
    assert await rows(database_url, "SELECT tokens_expire_at FROM auth.session") == before


@pytest.mark.parametrize(("seconds", "remembered"), [(30, 1), (90, 0)])
async def test_a_session_is_remembered_a_minute_beyond_its_tokens_by_the_databases_clock(
    mesh: Mesh, database_url: URL, seconds: int, remembered: int
) -> None:
    tokens = await open_session(mesh)
    await mesh.auth.Logout(pb.LogoutRequest(), metadata=bearer(tokens.access_token))
    past = f"tokens_expire_at = now() - interval '{seconds} seconds'"
    await execute(database_url, f"UPDATE auth.session SET {past}")  # noqa: S608 - constants
    assert len(await rows(database_url, "SELECT session FROM policy.revoked")) == remembered


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


async def test_the_keys_are_read_once_for_all_who_ask_at_a_time(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    read = AuthReader.signing_keys

    async def counted(reader: AuthReader) -> Any:
        nonlocal reads
        reads += 1
        return await read(reader)

    monkeypatch.setattr(login, "JWKS_AGE", 60)
    monkeypatch.setattr(AuthReader, "signing_keys", counted)
    answers = await asyncio.gather(*(mesh.auth.GetJwks(pb.GetJwksRequest()) for _ in range(50)))
    assert len({answer.jwks_json for answer in answers}) == 1
    assert reads <= 1


async def test_a_workload_has_no_session_to_end(mesh: Mesh) -> None:
    signer = WorkloadSigner(mesh.settings.keys_dir, ServiceName.INFERENCE)
    await mesh.auth.Logout(pb.LogoutRequest(), metadata=signer.metadata(ServiceName.AUTH))


async def test_the_keys_do_not_wait_for_the_turn_of_a_stranger_who_asked_first(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    works: list[str] = []
    read = AuthReader.signing_keys

    async def noted(reader: AuthReader) -> Any:
        works.append(database._work_of.get()())
        return await read(reader)

    monkeypatch.setattr(login, "JWKS_AGE", -1)
    monkeypatch.setattr(AuthReader, "signing_keys", noted)
    await mesh.auth.GetJwks(pb.GetJwksRequest())
    await mesh.auth.GetJwks(pb.GetJwksRequest())
    assert works[-1] == ""
