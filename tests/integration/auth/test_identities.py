"""Users and grants."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from sqlalchemy import URL

from inferplane.auth.v1 import identity_service_pb2 as pb
from inferplane.server.auth.first_admin import create_first_admin
from inferplane.server.errors import InferplaneError
from inferplane.server.settings import ServiceName, Settings
from tests.support.database import audit_events, rows
from tests.support.mesh import ADMIN, PASSWORD, Mesh, detail, failure, reason, running_mesh


@pytest.fixture
async def mesh(settings: Settings) -> AsyncIterator[Mesh]:
    async with running_mesh(settings, ServiceName.AUTH) as mesh:
        yield mesh


def new_user(name: str = "alice", **fields: str) -> pb.CreateUserRequest:
    return pb.CreateUserRequest(user_id=name, password=PASSWORD, **fields)


async def test_a_new_user_may_log_in_and_do_nothing(mesh: Mesh) -> None:
    alice = await mesh.user("alice")
    assert await reason(mesh.identity.ListUsers(pb.ListUsersRequest(), metadata=alice)) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "PERMISSION_DENIED",
    )


async def test_a_name_is_taken_once(mesh: Mesh) -> None:
    admin = await mesh.login()
    await mesh.identity.CreateUser(new_user(), metadata=admin)
    assert await reason(mesh.identity.CreateUser(new_user(), metadata=admin)) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "USER_EXISTS",
    )


async def test_same_key_and_body_answer_the_same(mesh: Mesh) -> None:
    admin = await mesh.login()
    first = await mesh.identity.CreateUser(new_user(idempotency_key="k"), metadata=admin)
    assert await mesh.identity.CreateUser(new_user(idempotency_key="k"), metadata=admin) == first


async def test_same_key_with_another_body_is_refused(mesh: Mesh) -> None:
    admin = await mesh.login()
    await mesh.identity.CreateUser(new_user(idempotency_key="k"), metadata=admin)
    call = mesh.identity.CreateUser(new_user("bob", idempotency_key="k"), metadata=admin)
    assert await reason(call) == (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize("name", ["", "Alice", "a" * 65, "a/b", "a\0", "-a", "ä"])
async def test_a_bad_name_is_refused_by_its_path(mesh: Mesh, name: str) -> None:
    error = await failure(mesh.identity.CreateUser(new_user(name), metadata=await mesh.login()))
    bad_request = error_details_pb2.BadRequest()
    assert detail(error, bad_request)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in bad_request.field_violations] == ["user_id"]


async def test_a_short_password_is_refused_and_not_repeated(mesh: Mesh) -> None:
    request = pb.CreateUserRequest(user_id="alice", password="hunter2")
    error = await failure(mesh.identity.CreateUser(request, metadata=await mesh.login()))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("password", ["hunter2", "\u00e4" * 513])
async def test_a_passwords_length_is_judged_in_bytes(mesh: Mesh, password: str) -> None:
    request = pb.CreateUserRequest(user_id="alice", password=password)
    assert await violations(mesh.identity.CreateUser(request, metadata=await mesh.login())) == [
        ("password", "must be 12 to 1024 bytes")
    ]


async def test_a_name_and_a_password_that_are_bad_are_both_named(mesh: Mesh) -> None:
    request = pb.CreateUserRequest(user_id="Alice", password="short")
    found = await violations(mesh.identity.CreateUser(request, metadata=await mesh.login()))
    assert [path for path, _ in found] == ["user_id", "password"]


@pytest.mark.parametrize(("username", "password"), [("Admin", PASSWORD), ("", PASSWORD), ("admin", "short")])
async def test_the_first_administrator_is_judged_as_any_other_user(
    settings: Settings, database_url: URL, username: str, password: str
) -> None:
    with pytest.raises(InferplaneError) as refused:
        await create_first_admin(settings, username, password)
    assert refused.value.violations
    assert not await rows(database_url, "SELECT 1 FROM auth.user_account")


async def test_a_bad_filter_of_grants_is_named_by_its_field(mesh: Mesh) -> None:
    request = pb.ListGrantsRequest(subject="alice")
    ((path, problem),) = await violations(mesh.identity.ListGrants(request, metadata=await mesh.login()))
    assert path == "subject"
    assert problem.startswith("must have the form users/{user}")


async def violations(call: Any) -> list[tuple[str, str]]:
    """The fields that a refused call names, and what is wrong with each."""
    bad_request = error_details_pb2.BadRequest()
    assert detail(await failure(call), bad_request)
    return [(violation.field, violation.description) for violation in bad_request.field_violations]


async def test_a_revoked_grant_stays_readable_in_the_audit(mesh: Mesh, database_url: URL) -> None:
    admin = await mesh.login()
    request = pb.GrantRoleRequest(subject=f"users/{ADMIN}", role="caller", scope="team-*")
    grant = await mesh.identity.GrantRole(request, metadata=admin)
    await mesh.identity.RevokeGrant(pb.RevokeGrantRequest(name=grant.name), metadata=admin)
    (event,) = await audit_events(database_url, "grant.remove")
    assert {change.field: change.before.text for change in event.changes} == {
        "subject": f"users/{ADMIN}",
        "role": "caller",
        "scope": "team-*",
    }
    assert not any(change.HasField("after") for change in event.changes)


async def test_a_grant_takes_effect_and_its_revocation_too(mesh: Mesh) -> None:
    alice = await mesh.user("alice", auditor="*")
    grants = await mesh.identity.ListGrants(pb.ListGrantsRequest(subject="users/alice"), metadata=alice)
    admin = await mesh.login()
    await mesh.identity.RevokeGrant(pb.RevokeGrantRequest(name=grants.grants[0].name), metadata=admin)
    await mesh.until_policy(lambda snapshot: not snapshot.grants_of("users/alice"))
    assert (await failure(mesh.identity.ListUsers(pb.ListUsersRequest(), metadata=alice))).code() == (
        grpc.StatusCode.PERMISSION_DENIED
    )


async def test_a_grant_made_twice_is_one_grant(mesh: Mesh) -> None:
    admin = await mesh.login()
    request = pb.GrantRoleRequest(subject=f"users/{ADMIN}", role="caller", scope="team-*")
    first = await mesh.identity.GrantRole(request, metadata=admin)
    assert await mesh.identity.GrantRole(request, metadata=admin) == first


async def test_a_grant_for_nobody_is_refused(mesh: Mesh) -> None:
    request = pb.GrantRoleRequest(subject="users/nobody", role="caller", scope="*")
    call = mesh.identity.GrantRole(request, metadata=await mesh.login())
    assert await reason(call) == (grpc.StatusCode.NOT_FOUND, "USER_NOT_FOUND")


async def test_the_last_administrator_stays(mesh: Mesh) -> None:
    admin = await mesh.login()
    grants = await mesh.identity.ListGrants(pb.ListGrantsRequest(), metadata=admin)
    call = mesh.identity.RevokeGrant(pb.RevokeGrantRequest(name=grants.grants[0].name), metadata=admin)
    assert await reason(call) == (grpc.StatusCode.FAILED_PRECONDITION, "LAST_ADMIN")


async def test_pages_cover_all_users_once(mesh: Mesh) -> None:
    admin = await mesh.login()
    for name in ("alice", "bob", "carol"):
        await mesh.identity.CreateUser(new_user(name), metadata=admin)
    seen: list[str] = []
    token = ""
    while True:
        page = await mesh.identity.ListUsers(pb.ListUsersRequest(page_size=2, page_token=token), metadata=admin)
        seen += [user.name for user in page.users]
        if not (token := page.next_page_token):
            break
    assert seen == ["users/alice", "users/bob", "users/carol", f"users/{ADMIN}"]


async def test_a_page_token_of_another_list_is_refused(mesh: Mesh) -> None:
    admin = await mesh.login()
    await mesh.identity.CreateUser(new_user(), metadata=admin)
    token = (await mesh.identity.ListUsers(pb.ListUsersRequest(page_size=1), metadata=admin)).next_page_token
    assert token
    call = mesh.identity.ListGrants(pb.ListGrantsRequest(page_token=token), metadata=admin)
    assert await reason(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


async def test_every_mutation_leaves_an_audit_event(mesh: Mesh, database_url: URL) -> None:
    await mesh.user("alice", viewer="digits")
    events = await rows(
        database_url, "SELECT action, actor, resource FROM reporting.audit_event WHERE actor = $1", f"users/{ADMIN}"
    )
    assert ("user.create", f"users/{ADMIN}", "users/alice") in [tuple(event) for event in events]
    assert "grant.add" in [event["action"] for event in events]


async def test_a_mutation_that_fails_leaves_nothing(mesh: Mesh, database_url: URL) -> None:
    request = pb.GrantRoleRequest(subject="users/nobody", role="caller", scope="*", idempotency_key="k")
    await failure(mesh.identity.GrantRole(request, metadata=await mesh.login()))
    assert not await rows(database_url, "SELECT 1 FROM auth.role_grant WHERE subject = 'users/nobody'")
    assert not await rows(database_url, "SELECT 1 FROM auth.idempotency_record")
