"""Decisions of a policy snapshot."""

import pytest

from inferplane.common.v1.access_pb2 import Permission
from inferplane.server.access.roles import ROLE_PERMISSIONS
from inferplane.server.access.snapshot import GrantRow, PolicySnapshot
from tests.support.policy import compile_snapshot

ALICE = "users/alice"


def granting(role: str, scope: str) -> PolicySnapshot:
    return compile_snapshot(1, [GrantRow(ALICE, role, scope)], [])


@pytest.mark.parametrize(
    ("scope", "name", "covered"),
    [
        ("*", "digits", True),
        ("*", "*", True),
        ("team-a-*", "team-a-x", True),
        ("team-a-*", "team-b-x", False),
        ("team-a-*", "my-team-a-x", False),
        ("team-a-*", "*", False),
        ("digits", "digits", True),
        ("digits", "digits2", False),
        ("digit?", "digits", True),
        ("a.b", "axb", False),
        ("**", "*", False),
    ],
)
def test_a_grant_covers_the_names_of_its_glob(scope: str, name: str, covered: bool) -> None:
    assert granting("caller", scope).allows(ALICE, Permission.PERMISSION_PREDICT, name) is covered


def test_nobody_else_is_covered() -> None:
    assert not granting("admin", "*").allows("users/bob", Permission.PERMISSION_PREDICT, "digits")


def test_a_role_that_is_not_known_gives_nothing() -> None:
    assert not granting("emperor", "*").allows_somewhere(ALICE, Permission.PERMISSION_PREDICT)


@pytest.mark.parametrize("role", sorted(set(ROLE_PERMISSIONS) - {"admin"}))
def test_only_administrators_change_identities(role: str) -> None:
    assert not granting(role, "*").allows(ALICE, Permission.PERMISSION_IDENTITIES_WRITE, "*")


def test_administrators_hold_every_permission() -> None:
    snapshot = granting("admin", "*")
    assert all(snapshot.allows(ALICE, permission, "*") for permission in Permission.values() if permission)
