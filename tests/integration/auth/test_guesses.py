"""Guesses at passwords: how many are evaluated, whom they lock out, and what they leave in the audit."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from sqlalchemy import URL

from inferplane.auth.v1 import auth_service_pb2 as pb
from inferplane.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from inferplane.server.auth import passwords, turns
from inferplane.server.auth.devices import Devices
from inferplane.server.auth.guesses import MAX_GUESSES
from inferplane.server.auth.login import AUTH
from inferplane.server.rpc.peers import address_of
from inferplane.server.settings import ServiceName, Settings
from tests.conftest import execute
from tests.support.database import audit_events, rows
from tests.support.mesh import ADMIN, PASSWORD, Mesh, failure, reason, running_mesh

RESOURCE_EXHAUSTED, UNAUTHENTICATED = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED
LIMITED = (RESOURCE_EXHAUSTED, "RATE_LIMITED")
WRONG = (UNAUTHENTICATED, "LOGIN_FAILED")
OVERLOADED = (RESOURCE_EXHAUSTED, "OVERLOADED")


@pytest.fixture
async def mesh(settings: Settings) -> AsyncIterator[Mesh]:
    async with running_mesh(settings, ServiceName.AUTH) as mesh:
        yield mesh


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passwords that were evaluated."""
    seen: list[str] = []
    verify = passwords.Passwords.verify

    async def seeing(self: passwords.Passwords, encoded: str | None, password: str) -> bool:
        seen.append(password)
        return await verify(self, encoded, password)

    monkeypatch.setattr(passwords.Passwords, "verify", seeing)
    return seen


def sign_in(mesh: Mesh, password: str = PASSWORD, device: str = "", username: str = ADMIN) -> Any:
    return mesh.auth.Login(pb.LoginRequest(username=username, password=password, device_token=device))


async def known_device(mesh: Mesh) -> str:
    token: str = (await sign_in(mesh)).device_token
    return token


async def guess(mesh: Mesh, times: int, **who: str) -> set[tuple[grpc.StatusCode, str]]:
    """The outcomes of wrong guesses made at once."""
    return set(await asyncio.gather(*(reason(sign_in(mesh, "wrong", **who)) for _ in range(times))))


@pytest.mark.parametrize("username", [ADMIN, "nobody"])
async def test_of_guesses_made_at_once_no_more_are_evaluated_than_of_guesses_made_in_turn(
    mesh: Mesh, evaluated: list[str], username: str
) -> None:
    outcomes = await guess(mesh, 200, username=username)
    assert LIMITED in outcomes
    assert outcomes <= {WRONG, LIMITED, OVERLOADED}
    assert len(evaluated) <= MAX_GUESSES


async def test_guesses_are_charged_before_they_are_evaluated_whatever_the_queue(
    settings: Settings, evaluated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STRANGERS", "STRANGERS_WAITING", "STRANGERS_WAITING_EACH"):
        monkeypatch.setattr(turns, name, 200)
    async with running_mesh(settings, ServiceName.AUTH) as mesh:
        assert await guess(mesh, 200) == {WRONG, LIMITED}
    assert len(evaluated) == MAX_GUESSES


async def test_strangers_guesses_do_not_lock_a_known_device_out(mesh: Mesh) -> None:
    device = await known_device(mesh)
    for _ in range(MAX_GUESSES):
        assert await reason(sign_in(mesh, "wrong")) == WRONG
    assert await reason(sign_in(mesh)) == LIMITED
    assert (await sign_in(mesh, device=device)).tokens.access_token


async def test_guesses_on_a_known_device_are_limited_too(mesh: Mesh) -> None:
    device = await known_device(mesh)
    for _ in range(MAX_GUESSES):
        assert await reason(sign_in(mesh, "wrong", device)) == WRONG
    assert await reason(sign_in(mesh, device=device)) == LIMITED
    assert (await sign_in(mesh)).tokens.access_token


async def test_right_passwords_count_as_no_guesses(mesh: Mesh) -> None:
    for _ in range(MAX_GUESSES + 1):
        await sign_in(mesh)


async def test_right_passwords_that_were_refused_lock_nobody_out(
    settings: Settings, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STRANGERS", "STRANGERS_WAITING", "STRANGERS_WAITING_EACH"):
        monkeypatch.setattr(turns, name, 200)
    release, verify = asyncio.Event(), passwords.Passwords.verify

    async def held(self: passwords.Passwords, encoded: str | None, password: str) -> bool:
        await release.wait()
        return await verify(self, encoded, password)

    async with running_mesh(settings, ServiceName.AUTH) as mesh:
        monkeypatch.setattr(passwords.Passwords, "verify", held)
        right = [asyncio.ensure_future(sign_in(mesh)) for _ in range(MAX_GUESSES + 5)]
        # Those that are refused end first: the others are held.
        ended = asyncio.as_completed(right)
        for _ in range(5):
            assert await reason(next(ended)) == LIMITED
        release.set()
        for signing_in in ended:
            await signing_in
        assert (await sign_in(mesh)).tokens.access_token
    assert [row["attempts"] for row in await rows(database_url, "SELECT attempts FROM auth.login_attempt")] == [0]


async def test_a_device_is_known_for_its_own_user_alone(mesh: Mesh) -> None:
    await mesh.user("alice")
    alices = (await sign_in(mesh, username="alice")).device_token
    for _ in range(MAX_GUESSES):
        await reason(sign_in(mesh, "wrong"))
    for token in (alices, "ipd_forged", "ipd_" + "A" * 64, "\u00e4"):
        assert await reason(sign_in(mesh, device=token)) == LIMITED


async def test_a_known_device_signs_in_during_a_flood_of_strangers(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    device = await known_device(mesh)
    release, verify = asyncio.Event(), passwords.Passwords.verify

    async def slow_for_strangers(self: passwords.Passwords, encoded: str | None, password: str) -> bool:
        if password == "wrong":
            await release.wait()
        return await verify(self, encoded, password)

    monkeypatch.setattr(passwords.Passwords, "verify", slow_for_strangers)
    target = f"127.0.0.1:{mesh.services[ServiceName.AUTH].ports[0]}"
    async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        strangers: Any = AuthServiceStub(channel)
        requests = (pb.LoginRequest(username=f"u{number}", password="wrong") for number in range(600))
        flood = [asyncio.ensure_future(failure(strangers.Login(request))) for request in requests]
        _, waiting = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
        assert waiting
        assert (await sign_in(mesh, device=device)).tokens.access_token
        release.set()
        errors = await asyncio.gather(*flood)
    # A connection carries only so many streams at once; what is beyond is refused by the transport.
    codes = Counter(error.code() for error in errors)
    assert set(codes) <= {UNAUTHENTICATED, RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
    assert codes[UNAUTHENTICATED] >= turns.STRANGERS
    assert codes[RESOURCE_EXHAUSTED]


async def test_whoever_is_refused_is_told_when_to_come_back(mesh: Mesh) -> None:
    await guess(mesh, MAX_GUESSES)
    error = await failure(sign_in(mesh))
    assert any(key == "grpc-status-details-bin" and b"RetryInfo" in value for key, value in error.trailing_metadata())


async def test_failed_sign_ins_leave_one_event_a_minute_and_user(mesh: Mesh, database_url: URL) -> None:
    for username in (ADMIN, "nobody", "nobody-else"):
        await guess(mesh, MAX_GUESSES + 2, username=username)
    count = "SELECT sum(failures), sum(refused), count(*) FROM auth.failed_sign_in GROUP BY resource ORDER BY resource"
    assert [tuple(row)[:2] for row in await rows(database_url, count)] == [(20, 4), (10, 2)]
    assert await audit_events(database_url, "session.login_failed") == []
    await execute(database_url, "UPDATE auth.failed_sign_in SET minute = minute - interval '1 hour'")
    counted = await rows(database_url, "SELECT resource FROM auth.failed_sign_in")
    flow = mesh_flow(mesh)
    await asyncio.gather(*(flow.report_failed_sign_ins() for _ in range(3)))
    await flow._database.close()
    events = await audit_events(database_url, "session.login_failed")
    told: dict[str, Counter[str]] = {}
    for event in events:
        counts = {change.field: change.after.number for change in event.changes if change.field != "minute"}
        told.setdefault(event.resource, Counter()).update(counts)
    assert sorted(event.resource for event in events) == sorted(row["resource"] for row in counted)
    assert told == {"users": {"failures": 20, "refused": 4}, f"users/{ADMIN}": {"failures": 10, "refused": 2}}
    assert {event.actor for event in events} == {AUTH.subject}


def mesh_flow(mesh: Mesh) -> Any:
    """The flow of the running service."""
    from inferplane.server.auth.login import LoginFlow
    from inferplane.server.keys import MasterKey
    from inferplane.server.storage.database import Database
    from inferplane.server.storage.unit_of_work import UnitOfWorkFactory

    unused: Any = None
    database = Database(mesh.settings, ServiceName.AUTH)
    units = UnitOfWorkFactory(database, MasterKey.load(mesh.settings.master_key_path))
    return LoginFlow(database, units, unused, unused, unused, unused)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ipv4:1.2.3.4:50", "ipv4:1.2.3.4:51", True),
        ("ipv4:1.2.3.4:50", "ipv4:1.2.3.5:50", False),
        ("ipv6:%5B2001:db8::1%5D:50", "ipv6:%5B2001:db8::2%5D:50", True),
        ("ipv6:[2001:db8::1]:50", "ipv6:[2001:db8:0:1::1]:50", False),
        ("unix:", "unix:", True),
    ],
)
def test_an_address_is_one_host_or_the_network_of_one(one: str, other: str, same: bool) -> None:
    assert (address_of(one) == address_of(other)) is same


def test_device_tokens_are_of_one_key_and_one_user() -> None:
    devices = Devices(bytes(32))
    token = devices.token("alice")
    device = devices.device_of(token, "alice")
    assert device
    assert devices.token("alice", device) == token
    assert devices.device_of(token, "bob") == ""
    assert Devices(bytes(31) + b"x").device_of(token, "alice") == ""


async def test_a_turn_is_held_until_the_work_is_done_even_if_its_caller_left() -> None:
    taken = turns.Turns()
    release, running = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        running.set()
        await release.wait()

    callers = [asyncio.create_task(taken.take("device", "alice", "", work)) for _ in range(turns.KNOWN)]
    await running.wait()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    next_one = asyncio.create_task(taken.take("device", "bob", "", work))
    await asyncio.wait([next_one], timeout=0)
    assert taken._known.inside == turns.KNOWN
    assert taken._known.waiting == 1
    release.set()
    await asyncio.wait_for(next_one, timedelta(seconds=30).total_seconds())


async def test_a_user_with_many_devices_does_not_keep_other_users_devices_waiting() -> None:
    taken, order = turns.Turns(), list[str]()
    release = asyncio.Event()

    async def work(name: str) -> None:
        await release.wait()
        order.append(name)

    def sign_in(device: str, username: str) -> "asyncio.Task[None]":
        return asyncio.create_task(taken.take(device, username, "", lambda: work(username)))

    signing_in = [sign_in(f"device {number}", "alice") for number in range(10)]
    signing_in.append(sign_in("device", "bob"))
    await asyncio.wait(signing_in, timeout=0)
    release.set()
    await asyncio.wait(signing_in)
    assert order[:2] == ["alice", "bob"]
    assert order.count("alice") == turns.KNOWN + turns.KNOWN_WAITING_EACH


async def test_two_addresses_that_fill_the_room_do_not_keep_a_third_out() -> None:
    taken = turns.Turns()
    release = asyncio.Event()

    def sign_in(address: str) -> "asyncio.Task[bool]":
        return asyncio.create_task(taken.take("", "alice", address, release.wait))

    flood = [sign_in(address) for address in ("one", "two") for _ in range(turns.STRANGERS + turns.STRANGERS_WAITING)]
    await asyncio.wait(flood, timeout=0)
    third = sign_in("three")
    await asyncio.wait([third], timeout=0)
    release.set()
    assert await third
    outcomes = await asyncio.gather(*flood, return_exceptions=True)
    assert Counter(map(type, outcomes))[bool] == turns.STRANGERS + turns.STRANGERS_WAITING - 1
