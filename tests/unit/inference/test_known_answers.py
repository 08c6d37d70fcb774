"""What is expected of a version's next answer, by those before."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from inferplane.server.access.snapshot import Route
from inferplane.server.errors import InferplaneError
from inferplane.server.inference.dataplane import known_answers
from inferplane.server.inference.dataplane.known_answers import (
    AT_FIRST,
    ENOUGH,
    LARGE,
    LITTLE,
    PAUSE,
    REMEMBERED,
    UNIT,
    UNKNOWN,
    AllKnownAnswers,
    KnownAnswers,
)
from tests.support.stand import target


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass."""
    now = [1000.0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return passes


def test_what_is_expected_follows_what_came_to_the_same_caller() -> None:
    known = KnownAnswers("sha256:0")
    known.came("alice", 64 * LARGE)
    assert (known.expected("alice"), known.expected("bob")) == (64 * LARGE, 0)
    known.came("alice", 1)
    assert known.expected("alice") == 16 * LARGE
    known.came("alice", 1)
    known.came("alice", 1)
    assert known.expected("alice") == 0


def test_a_larger_answer_is_expected_at_once() -> None:
    known = KnownAnswers("sha256:0")
    known.came("alice", 2 * LARGE)
    known.came("alice", 64 * LARGE)
    assert known.expected("alice") == 64 * LARGE


@pytest.mark.parametrize(("size", "small"), [(LARGE, True), (LARGE + 1, False)])
def test_answers_are_taken_to_be_small_where_enough_and_all_were(size: int, small: bool) -> None:
    known = KnownAnswers("sha256:0")
    for _ in range(ENOUGH - 1):
        known.came("alice", 1)
    assert not known.are_small
    known.came("alice", size)
    assert known.are_small is small


def test_of_how_many_callers_something_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_answers, "MOST_CALLERS", 10)
    known = KnownAnswers("sha256:0")
    for number in range(100):
        known.came(f"user{number}", LARGE + 1)
        assert len(known._had) <= 10


def test_an_answer_may_be_as_large_as_the_largest_that_came_to_its_caller(clock: Callable[[float], None]) -> None:
    known = KnownAnswers("sha256:0")
    assert known.may_be("alice") == UNKNOWN
    known.came("alice", 2 * LITTLE)
    for _ in range(20):
        known.came("alice", 1)
    assert (known.may_be("alice"), known.expected("alice"), known.may_be("bob")) == (2 * LITTLE, 0, UNKNOWN)
    known.came("bob", LITTLE)
    assert known.may_be("bob") == 0


def test_where_the_first_was_small_nobodys_next_counts() -> None:
    known = KnownAnswers("sha256:0")
    known.came("alice", 1)
    assert (known.may_be("alice"), known.may_be("bob")) == (0, 0)


@pytest.mark.parametrize("step", [1.0, REMEMBERED / 3, REMEMBERED - 1])
def test_the_largest_is_remembered_for_a_while_however_many_come_after_it(
    clock: Callable[[float], None], step: float
) -> None:
    known, passed = KnownAnswers("sha256:0"), 0.0
    for _ in range(3):
        known.came("alice", 1)
        clock(REMEMBERED / 3)
    known.came("alice", 2 * LITTLE)
    while known.may_be("alice") > 0:
        clock(step)
        passed += step
        known.came("alice", 1)
    assert REMEMBERED <= passed <= 2 * REMEMBERED + step


def test_the_largest_is_forgotten_where_nothing_came_for_long(clock: Callable[[float], None]) -> None:
    known = KnownAnswers("sha256:0")
    known.came("alice", 2 * LITTLE)
    clock(2 * REMEMBERED)
    assert known.may_be("alice") == 0


def refused(known: KnownAnswers, caller: str = "alice") -> float | None:
    """Seconds that he is to wait; None where he need not."""
    try:
        known.check(caller)
    except InferplaneError as error:
        return error.retry_after
    return None


def test_whose_answers_are_refused_for_their_size_has_one_a_minute_after_the_first(
    clock: Callable[[float], None],
) -> None:
    known = KnownAnswers("sha256:0")
    for _ in range(AT_FIRST):
        assert refused(known) is None
        known.was_refused("alice", UNIT)
    assert (refused(known), refused(known, "bob")) == (PAUSE, None)
    assert known.may_be("alice") == UNIT
    clock(PAUSE)
    assert refused(known) is None
    known.came("alice", 1)
    assert refused(known) is None
    known.was_refused("alice", UNIT)
    assert refused(known) == PAUSE
    clock(PAUSE * AT_FIRST)
    for _ in range(AT_FIRST):
        assert refused(known) is None
        known.was_refused("alice", UNIT)
    assert refused(known) == PAUSE


def test_other_bytes_are_learned_anew_also_under_the_same_version() -> None:
    known = AllKnownAnswers()
    of_one = known.of(Route("m", target(1), ready=True))
    assert known.of(Route("m", target(1), ready=False)) is of_one
    assert known.of(Route("other", target(1), ready=True)) is not of_one
    assert known.of(Route("m", replace(target(1), digest="sha256:" + "f" * 64), ready=True)) is not of_one


def test_of_how_many_deployments_something_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_answers, "MOST_DEPLOYMENTS", 10)
    known = AllKnownAnswers()
    for number in range(100):
        known.of(Route(str(number), target(1), ready=True))
        assert len(known._known) <= 10


@pytest.mark.parametrize(("size", "pauses"), [(UNIT // 2, 1), (3 * UNIT, 3), (100 * UNIT, AT_FIRST // 2)])
def test_a_larger_one_counts_for_more(clock: Callable[[float], None], size: int, pauses: int) -> None:
    known = KnownAnswers("sha256:0")
    for _ in range(AT_FIRST - 1):
        known.was_refused("alice", UNIT)
    known.was_refused("alice", size)
    assert refused(known) == PAUSE * pauses


def test_a_burst_of_answers_that_are_refused_costs_no_more_than_one_of_them(clock: Callable[[float], None]) -> None:
    known = KnownAnswers("sha256:0")
    for _ in range(10 * AT_FIRST):
        known.was_refused("alice", UNIT)
    assert refused(known) == PAUSE


def test_one_alone_is_forgiven_however_large_it_was(clock: Callable[[float], None]) -> None:
    known = KnownAnswers("sha256:0")
    known.was_refused("alice", 1 << 31)
    assert refused(known) is None
    known.was_refused("alice", 1 << 31)
    assert refused(known)
