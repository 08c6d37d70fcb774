"""Globs of grants: what they cover, and what that costs."""

import time
from functools import cache

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from inferplane.common.v1.access_pb2 import Permission
from inferplane.server.access.globs import Glob
from inferplane.server.access.snapshot import GrantRow, PolicySnapshot
from tests.support.policy import compile_snapshot

ALICE = "users/alice"
PREDICT = Permission.PERMISSION_PREDICT
FEW_LETTERS = st.text("ab", max_size=12)


def reference(scope: str, name: str) -> bool:
    """What a glob covers, by its definition."""

    @cache
    def covers(scope: str, name: str) -> bool:
        if not scope:
            return not name
        if scope[0] == "*":
            return covers(scope[1:], name) or (bool(name) and covers(scope, name[1:]))
        return bool(name) and scope[0] in ("?", name[0]) and covers(scope[1:], name[1:])

    return covers(scope, name)


@hypothesis_settings(deadline=None)
@given(st.text("ab*?", max_size=12), FEW_LETTERS)
def test_a_glob_covers_what_its_definition_says(scope: str, name: str) -> None:
    assert Glob(scope).covers(name) is reference(scope, name)


@hypothesis_settings(deadline=None)
@given(st.text(st.characters(exclude_characters="*?"), max_size=20))
def test_other_characters_stand_for_themselves(name: str) -> None:
    assert Glob(name).covers(name)
    assert not Glob(name).covers(name + "x")


def cpu_of_one(scope: str, name: str) -> float:
    """The best of three, in seconds: the machine may be busy with something else."""
    glob = Glob(scope)

    def once() -> float:
        before = time.thread_time()
        glob.covers(name)
        return time.thread_time() - before

    return min(once() for _ in range(3))


def test_a_hostile_glob_costs_no_more_than_its_length() -> None:
    scopes = ("*a" * 64, "*a?" * 42 + "b", "*" + "a" * 126 + "b", "*" * 127 + "b", "*a*b*c*d", "*" + "a?" * 63)
    name = "a" * 10_000
    assert max(cpu_of_one(scope, name) for scope in scopes) < 0.005


def remembered(snapshot: PolicySnapshot) -> int:
    return len(snapshot.grants.decisions)


def test_decisions_on_names_that_no_model_has_are_not_remembered() -> None:
    snapshot = compile_snapshot(1, [GrantRow(ALICE, "caller", "a*")], [])
    assert snapshot.allows(ALICE, PREDICT, "a" * 1_000_000)
    assert remembered(snapshot) == 0
    assert snapshot.allows(ALICE, PREDICT, "a" * 128)
    assert remembered(snapshot) == 1


def test_no_more_decisions_are_remembered_than_there_is_room_for() -> None:
    snapshot = compile_snapshot(1, [GrantRow(ALICE, "caller", "a*")], [])
    for number in range(2 * snapshot.grants.MAX_REMEMBERED + 1):
        snapshot.allows(ALICE, PREDICT, f"a{number}")
    assert 0 < remembered(snapshot) <= snapshot.grants.MAX_REMEMBERED
