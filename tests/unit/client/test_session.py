"""The access token is renewed once for all who wait for it, and never twice with one refresh token."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from inferplane.client import FileStore, Inferplane, MemoryStore, Password, Tokens, errors
from inferplane.client.endpoints import Endpoints
from inferplane.server.auth.sessions import REFRESH_GRACE
from tests.support.fake_serving import FakeMesh

_REFRESHER = """
import asyncio, sys
from pathlib import Path
from inferplane.client import Inferplane

async def main():
    async with Inferplane.from_profile(Path(sys.argv[1])) as plane:
        await plane.auth.access_token()
        print("loaded", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(await plane.auth.refresh(), flush=True)

asyncio.run(main())
"""


def _expiring(tokens: Tokens) -> Tokens:
    now = datetime.now(UTC)
    return Tokens(
        tokens.access_token,
        now + timedelta(seconds=20),
        tokens.refresh_token,
        now + timedelta(days=1),
        received=now - timedelta(minutes=10),
    )


async def test_a_password_opens_a_session(mesh: FakeMesh) -> None:
    credentials = Password("alice", "correct horse battery")
    async with Inferplane.connect(mesh.endpoints, credentials) as plane:
        assert (await plane.auth.whoami()).subject == "users/alice"


async def test_a_wrong_password_is_unauthenticated(mesh: FakeMesh) -> None:
    with pytest.raises(errors.Unauthenticated) as caught:
        async with Inferplane.connect(mesh.endpoints, Password("alice", "wrong")):
            pass
    assert caught.value.reason == "LOGIN_FAILED"


async def test_raw_stubs_carry_the_token(mesh: FakeMesh, plane: Inferplane) -> None:
    from inferplane.auth.v1.auth_service_pb2 import WhoAmIRequest

    answer = await plane.auth.service.WhoAmI(WhoAmIRequest())
    assert answer.identity.subject == "users/alice"


async def test_an_expired_token_is_refreshed_and_the_call_repeated(mesh: FakeMesh, plane: Inferplane) -> None:
    mesh.fakes.expire_tokens()
    await plane.auth.whoami()
    assert mesh.fakes.calls == ["WhoAmI", "RefreshToken", "WhoAmI"]


async def test_concurrent_calls_share_one_refresh(mesh: FakeMesh, plane: Inferplane) -> None:
    mesh.fakes.expire_tokens()
    await asyncio.gather(*(plane.auth.whoami() for _ in range(20)))
    assert (mesh.auth.refreshes, mesh.auth.reuses) == (1, 0)


async def test_a_token_about_to_expire_is_refreshed_before_the_call(mesh: FakeMesh) -> None:
    store = MemoryStore(_expiring(Tokens.of(mesh.auth.issue())))
    async with Inferplane.connect(mesh.endpoints, store) as plane:
        await plane.auth.whoami()
    assert mesh.fakes.calls == ["RefreshToken", "WhoAmI"]


async def test_auth_being_away_does_not_stop_calls_while_the_token_is_good(mesh: FakeMesh) -> None:
    mesh.fault("RefreshToken", grpc.StatusCode.UNAVAILABLE, times=9)
    store = MemoryStore(_expiring(Tokens.of(mesh.auth.issue())))
    async with Inferplane.connect(mesh.endpoints, store) as plane:
        await plane.auth.whoami()


async def test_a_clock_that_is_ahead_does_not_make_every_call_refresh(mesh: FakeMesh) -> None:
    mesh.auth.lifetime = timedelta(minutes=-5)
    async with Inferplane.connect(mesh.endpoints, Tokens.of(mesh.auth.issue())) as plane:
        await plane.auth.whoami()
    assert mesh.auth.refreshes == 0


async def test_a_cancelled_call_does_not_lose_the_refreshed_tokens(mesh: FakeMesh) -> None:
    store = MemoryStore(_expiring(Tokens.of(mesh.auth.issue())))
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(token: str) -> Tokens:
        asked.set()
        await go_on.wait()
        return Tokens.of(mesh.auth.issue())

    async with Inferplane.connect(mesh.endpoints, store) as plane:
        plane.auth._session._refresh = slowly
        call = asyncio.create_task(plane.auth.whoami())
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()
    saved = await store.load()
    assert saved is not None
    assert saved.access_token == "access-1"


async def test_a_session_that_is_over_is_forgotten(mesh: FakeMesh) -> None:
    store = MemoryStore(Tokens.of(mesh.auth.issue()))
    mesh.auth.refresh_tokens.clear()
    mesh.fakes.expire_tokens()
    async with Inferplane.connect(mesh.endpoints, store) as plane:
        with pytest.raises(errors.Unauthenticated) as caught:
            await plane.auth.whoami()
    assert (caught.value.reason, await store.load()) == ("REFRESH_TOKEN_REUSED", None)


async def test_an_ended_session_is_called_so_where_there_is_nothing_to_renew(mesh: FakeMesh) -> None:
    async with Inferplane.connect(mesh.endpoints, mesh.auth.issue().access_token) as plane:
        mesh.fault("WhoAmI", grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED", times=2)
        with pytest.raises(errors.Unauthenticated) as caught:
            await plane.auth.whoami()
    assert caught.value.reason == "SESSION_ENDED"


async def test_auth_being_busy_does_not_stop_calls_while_the_token_is_good(mesh: FakeMesh) -> None:
    store = MemoryStore(_expiring(Tokens.of(mesh.auth.issue())))
    mesh.fault("RefreshToken", grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", times=9)
    async with Inferplane.connect(mesh.endpoints, store) as plane:
        assert (await plane.auth.whoami()).subject == "users/alice"


async def test_a_session_that_another_process_ended_and_began_anew_is_taken_up(mesh: FakeMesh) -> None:
    store = MemoryStore(Tokens.of(mesh.auth.issue()))
    async with Inferplane.connect(mesh.endpoints, store) as plane:
        await plane.auth.whoami()
        mesh.fault("WhoAmI", grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED")
        successor = Tokens.of(mesh.auth.issue())
        await store.save(successor)
        assert (await plane.auth.whoami()).subject == "users/alice"
        assert (await plane.auth.access_token(), mesh.auth.refreshes) == (successor.access_token, 0)


async def test_an_access_token_alone_cannot_be_refreshed(mesh: FakeMesh) -> None:
    token = mesh.auth.issue().access_token
    mesh.fakes.expire_tokens()
    async with Inferplane.connect(mesh.endpoints, token) as plane:
        with pytest.raises(errors.Unauthenticated) as caught:
            await plane.auth.whoami()
    assert (caught.value.reason, mesh.auth.refreshes) == ("TOKEN_EXPIRED", 0)


async def test_logout_forgets_the_tokens_even_where_the_session_is_over(mesh: FakeMesh) -> None:
    store = MemoryStore(Tokens.of(mesh.auth.issue()))
    mesh.fakes.tokens.clear()
    async with Inferplane.connect(mesh.endpoints, store) as plane:
        await plane.auth.logout()
    assert await store.load() is None


async def test_logout_keeps_the_tokens_where_auth_could_not_be_asked(mesh: FakeMesh) -> None:
    store = MemoryStore(Tokens.of(mesh.auth.issue()))
    mesh.fault("Logout", grpc.StatusCode.UNAVAILABLE, times=9)
    async with Inferplane.connect(mesh.endpoints, store) as plane:
        with pytest.raises(errors.Unavailable):
            await plane.auth.logout()
        assert await store.load() is not None
        mesh.fakes.faults.clear()
        await plane.auth.logout()
    assert (mesh.auth.logouts, await store.load()) == (1, None)


async def test_processes_that_share_the_credentials_share_one_refresh(mesh: FakeMesh, tmp_path: Path) -> None:
    from inferplane.client.endpoints import save_profile

    save_profile(mesh.endpoints, tmp_path)
    await FileStore(mesh.endpoints, tmp_path).save(Tokens.of(mesh.auth.issue()))
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _REFRESHER, str(tmp_path), stdin=pipe, stdout=pipe)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"loaded\n"
    answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [output for output, _ in answers] == [b"access-1\n"] * 2
    assert (mesh.auth.refreshes, mesh.auth.reuses) == (1, 0)


async def test_two_clients_of_one_file_share_one_refresh(mesh: FakeMesh, tmp_path: Path) -> None:
    await FileStore(mesh.endpoints, tmp_path).save(Tokens.of(mesh.auth.issue()))
    mesh.fakes.expire_tokens()
    stores = [FileStore(mesh.endpoints, tmp_path) for _ in range(2)]
    async with (
        Inferplane.connect(mesh.endpoints, stores[0]) as one,
        Inferplane.connect(mesh.endpoints, stores[1]) as two,
    ):
        await asyncio.gather(one.auth.whoami(), two.auth.whoami())
    assert (mesh.auth.refreshes, mesh.auth.reuses) == (1, 0)


async def test_a_device_is_remembered_beyond_the_session(mesh: FakeMesh, tmp_path: Path) -> None:
    for _ in range(2):
        async with Inferplane.connect(mesh.endpoints, FileStore(mesh.endpoints, tmp_path)) as plane:
            await plane.auth.login("alice", "correct horse battery")
            await plane.auth.logout()
    assert mesh.auth.devices == ["", "device of alice"]


async def test_a_device_is_remembered_for_each_user_and_mesh(mesh: FakeMesh, tmp_path: Path) -> None:
    await FileStore(mesh.endpoints, tmp_path).save_device("alice", "token")
    other = Endpoints.on("elsewhere")
    assert await FileStore(mesh.endpoints, tmp_path).load_device("alice") == "token"
    assert await FileStore(mesh.endpoints, tmp_path).load_device("bob") == ""
    assert await FileStore(other, tmp_path).load_device("alice") == ""


async def test_a_refresh_whose_answer_was_lost_is_repeated(mesh: FakeMesh) -> None:
    mesh.fault("RefreshToken", grpc.StatusCode.UNAVAILABLE, times=1)
    store = MemoryStore(_expiring(Tokens.of(mesh.auth.issue())))
    async with Inferplane.connect(mesh.endpoints, store) as plane:
        await plane.auth.whoami()
    assert mesh.fakes.calls == ["RefreshToken", "RefreshToken", "WhoAmI"]


async def test_a_refresh_without_an_answer_in_time_is_repeated(mesh: FakeMesh) -> None:
    mesh.fault("RefreshToken", grpc.StatusCode.DEADLINE_EXCEEDED, times=2)
    store = MemoryStore(_expiring(Tokens.of(mesh.auth.issue())))
    async with Inferplane.connect(mesh.endpoints, store) as plane:
        await plane.auth.whoami()
    assert mesh.fakes.calls == ["RefreshToken"] * 3 + ["WhoAmI"]


async def test_all_tries_of_a_refresh_are_over_within_the_services_grace(mesh: FakeMesh) -> None:
    mesh.fault("RefreshToken", grpc.StatusCode.DEADLINE_EXCEEDED, times=99)
    async with Inferplane.connect(mesh.endpoints, Tokens.of(mesh.auth.issue())) as plane:
        with pytest.raises(errors.DeadlineExceeded):
            await plane.auth.refresh()
    assert mesh.fakes.calls == ["RefreshToken"] * len(mesh.fakes.time_remaining)
    assert sum(mesh.fakes.time_remaining) < REFRESH_GRACE.total_seconds() / 2
