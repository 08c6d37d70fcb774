"""What is to be done, from what the tables say and what Triton says."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.server.inference.deployments import Deployment, Incoming, Served, State, VersionInfo
from inferplane.server.inference.reconcile.plan import (
    MAX_LOADING_BYTES,
    MAX_LOADS,
    SETTLE,
    Action,
    Confirm,
    Load,
    Plan,
    Retries,
    Unload,
    key_of,
    plan,
)
from inferplane.server.tensors import Signature

AT = datetime(2026, 1, 1, tzinfo=UTC)


def version(number: int, size: int = 4) -> VersionInfo:
    return VersionInfo("m", number, f"sha256:{number:064}", size, Signature((), ()), "")


V1, V2, V3 = version(1), version(2), version(3)


def deployed(
    name: str = "m",
    *,
    state: State = "READY",
    serves: VersionInfo = V1,
    incoming: VersionInfo | None = None,
    age: float = 60,
    formers: tuple[VersionInfo, ...] = (),
    deleted: bool = False,
    number: int = 1,
) -> Deployment:
    coming = Incoming(incoming, AT + timedelta(seconds=1), age) if incoming else None
    return Deployment(UUID(int=number), name, serves, state, "", AT, "users/alice", AT, deleted, coming, formers)


def of(shown: VersionInfo) -> Served:
    return Served(shown.digest, shown.version)


def decide(
    *rows: Deployment,
    served: dict[str, Served | None] | None = None,
    running: dict[str, Action] | None = None,
    retries: Retries | None = None,
    now: float = 0,
) -> Plan:
    said = {row.name: None for row in rows} if served is None else served
    return plan(rows, said, running or {}, (retries or Retries(),), now)


def only(decided: Plan) -> Action | None:
    assert len(decided.start) <= 1
    return next(iter(decided.start), None)


def test_what_is_not_served_is_loaded() -> None:
    row = deployed(state="LOADING")
    assert only(decide(row)) == Load(row, V1)


def test_what_triton_lost_is_loaded_again() -> None:
    row = deployed(state="READY")
    assert only(decide(row)) == Load(row, V1)


def test_what_is_served_and_known_to_be_needs_nothing() -> None:
    assert only(decide(deployed(), served={"m": of(V1)})) is None


@pytest.mark.parametrize("state", ["LOADING", "FAILED"])
def test_what_is_served_after_all_is_confirmed(state: State) -> None:
    row = deployed(state=state)
    assert only(decide(row, served={"m": of(V1)})) == Confirm(row, V1)


def test_other_bytes_of_that_name_are_replaced() -> None:
    row = deployed()
    assert only(decide(row, served={"m": Served("", 1)})) == Load(row, V1)


def test_the_same_bytes_as_another_version_are_not_that_version() -> None:
    row = deployed(serves=replace(V2, digest=V1.digest))
    assert only(decide(row, served={"m": of(V1)})) == Load(row, row.version)


def test_of_what_triton_cannot_say_nothing_is_done() -> None:
    assert only(decide(deployed(), served={})) is None


def test_a_replacement_is_loaded_once_every_worker_knows_of_it() -> None:
    row = deployed(incoming=V2, age=SETTLE)
    assert only(decide(row, served={"m": of(V1)})) == Load(row, V2)
    assert only(decide(deployed(incoming=V2, age=SETTLE - 0.1), served={"m": of(V1)})) is None


def test_a_replacement_that_is_served_is_confirmed() -> None:
    row = deployed(incoming=V2)
    assert only(decide(row, served={"m": of(V2)})) == Confirm(row, V2)


def test_an_empty_triton_gets_back_what_served_before_what_is_to_come() -> None:
    row = deployed(incoming=V2)
    assert only(decide(row)) == Load(row, V1)


def test_a_superseded_version_that_answers_meanwhile_is_replaced_by_the_newest_wish() -> None:
    row = deployed(incoming=V3, formers=(V2,))
    assert only(decide(row, served={"m": of(V2)})) == Load(row, V3)
    row = deployed(formers=(V2,))
    assert only(decide(row, served={"m": of(V2)})) == Load(row, V1)


def test_a_replacement_that_fails_is_not_in_the_way_of_what_served() -> None:
    row, retries = deployed(incoming=V2, formers=(V3,)), Retries()
    retries.failed(key_of(row, V2), 0)
    assert only(decide(row, served={"m": of(V3)}, retries=retries)) == Load(row, V1)
    assert only(decide(row, served={"m": of(V1)}, retries=retries)) is None


def test_what_was_deleted_is_unloaded_unless_its_name_lives_on() -> None:
    gone = deployed(deleted=True)
    again = deployed(number=2, state="LOADING")
    assert only(decide(gone)) == Unload(gone, from_triton=True)
    assert decide(gone, again).start == (Unload(gone, from_triton=False),)


def test_one_action_a_name() -> None:
    row = deployed()
    assert decide(row, running={"m": Load(row, V1)}) == Plan((), ())
    assert decide(row, running={"m": Unload(row, from_triton=True)}) == Plan((), ())


@pytest.mark.parametrize(
    "now_wanted",
    [deployed(deleted=True), deployed(serves=V2), deployed(number=2)],
    ids=["deleted", "replaced", "another"],
)
def test_a_load_that_nobody_wants_any_more_is_given_up(now_wanted: Deployment) -> None:
    assert decide(now_wanted, running={"m": Load(deployed(), V1)}) == Plan((), ("m",))


def test_a_load_goes_on_while_it_is_wanted() -> None:
    running: dict[str, Action] = {"m": Load(deployed(incoming=V2), V2)}
    assert decide(deployed(incoming=V2), running=running).cancel == ()
    assert decide(deployed(incoming=V3, formers=(V2,)), running=running).cancel == ("m",)


def test_loads_are_bounded_in_number_and_deletions_are_not() -> None:
    rows = [deployed(f"m{number}", number=number) for number in range(MAX_LOADS + 3)]
    gone = [deployed(f"gone{number}", number=99 + number, deleted=True) for number in range(9)]
    started = decide(*rows, *gone).start
    assert [type(action) for action in started].count(Load) == MAX_LOADS
    assert [type(action) for action in started].count(Unload) == len(gone)


def test_loads_are_bounded_in_bytes_and_the_largest_goes_alone() -> None:
    huge = deployed("huge", serves=version(1, MAX_LOADING_BYTES + 1))
    small = deployed("small", number=2)
    assert decide(huge, small).start == (Load(huge, huge.version),)
    assert decide(small, huge).start == (Load(small, V1),)
    assert decide(small, huge, running={"small": Load(small, V1)}).start == ()


def test_a_failure_is_waited_for_twice_as_long_each_time_up_to_a_cap() -> None:
    retries, key = Retries(first=5, longest=600), key_of(deployed(), V1)
    assert [retries.failed(key, 0) for _ in range(9)] == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    assert not retries.due(key, 599.9)
    assert retries.due(key, 600)


def test_after_a_success_the_next_failure_is_a_first_one() -> None:
    retries, key = Retries(first=5, longest=600), key_of(deployed(), V1)
    retries.failed(key, 0)
    retries.succeeded(key)
    assert retries.due(key, 0)
    assert retries.failed(key, 0) == 5


def test_a_new_wish_for_the_same_is_tried_at_once() -> None:
    row, retries = deployed(state="FAILED"), Retries()
    retries.failed(key_of(row, V1), 0)
    assert only(decide(row, retries=retries)) is None
    again = replace(row, requested_at=AT + timedelta(seconds=5))
    assert only(decide(again, retries=retries)) == Load(again, V1)


def test_what_is_no_more_is_not_remembered() -> None:
    retries, key = Retries(), key_of(deployed(), V1)
    retries.failed(key, 0)
    retries.keep([])
    assert retries.due(key, 0)


versions = st.sampled_from([V1, V2, V3])
names = st.sampled_from(["a", "b", "c"])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Deployment], dict[str, Served | None]]:
    rows, live = [], set()
    for number in range(draw(st.integers(0, 8))):
        name = draw(names)
        deleted = name in live or draw(st.booleans())
        if not deleted:
            live.add(name)
        serves = draw(versions)
        incoming = draw(st.none() | st.sampled_from([other for other in (V1, V2, V3) if other != serves]))
        formers = tuple(other for other in (V1, V2, V3) if other not in (serves, incoming))
        state: State = draw(st.sampled_from(["LOADING", "READY", "FAILED"]))
        rows.append(
            deployed(name, state=state, serves=serves, incoming=incoming, formers=formers, deleted=deleted,
                     number=number, age=draw(st.sampled_from([0, 60])))
        )  # fmt: skip
    return rows, draw(st.dictionaries(names, st.none() | versions.map(of)))


def carried_out(rows: list[Deployment], served: dict[str, Served | None], actions: tuple[Action, ...]) -> None:
    """What the actions make of the world, where none of them fails."""
    for action in actions:
        row = action.deployment
        match action:
            case Unload():
                rows.remove(row)
                if action.from_triton:
                    served.pop(row.name, None)
            case Load():
                served[row.name] = of(action.version)
            case Confirm() if action.version == row.version:
                rows[rows.index(row)] = replace(row, state="READY")
            case Confirm():
                former = (row.version,)
                changed = replace(row, version=action.version, incoming=None, state="READY", formers=former)
                rows[rows.index(row)] = changed


@given(worlds())
def test_whatever_the_beginning_the_world_becomes_what_was_wished_for(
    world: tuple[list[Deployment], dict[str, Served | None]],
) -> None:
    rows, served = world
    wished = {row.name: row.incoming.version if row.incoming else row.version for row in rows if not row.deleted}
    for _ in range(30):
        said = {row.name: served.get(row.name) for row in rows}
        decided = plan(rows, said, {}, (Retries(),), 0)
        by_name = [action.deployment.name for action in decided.start]
        assert len(by_name) == len(set(by_name))
        carried_out(rows, served, decided.start)
        rows = [replace(row, incoming=replace(row.incoming, age=60)) if row.incoming else row for row in rows]
    assert {row.name: row.version for row in rows} == wished
    assert all(row.state == "READY" and not row.deleted for row in rows)
    assert {name: served[name] for name in wished} == {name: of(wish) for name, wish in wished.items()}


@given(worlds())
def test_a_deployment_that_answers_is_never_unloaded(
    world: tuple[list[Deployment], dict[str, Served | None]],
) -> None:
    rows, served = world
    live = {row.name for row in rows if not row.deleted}
    for action in plan(rows, served, {}, (Retries(),), 0).start:
        assert not (isinstance(action, Unload) and action.from_triton and action.deployment.name in live)
