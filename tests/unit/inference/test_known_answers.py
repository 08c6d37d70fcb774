"""What is expected of a version's next answer, by those before."""

import pytest

from inferplane.server.inference.dataplane import answer_reader
from inferplane.server.inference.dataplane.answer_reader import ENOUGH, SMALL, KnownAnswers


def test_what_is_expected_follows_what_came_to_the_same_caller() -> None:
    known = KnownAnswers("sha256:0")
    known.came("alice", 64 * SMALL)
    assert (known.expected("alice"), known.expected("bob")) == (64 * SMALL, 0)
    known.came("alice", 1)
    assert known.expected("alice") == 16 * SMALL
    known.came("alice", 1)
    known.came("alice", 1)
    assert known.expected("alice") == 0


def test_a_larger_answer_is_expected_at_once() -> None:
    known = KnownAnswers("sha256:0")
    known.came("alice", 2 * SMALL)
    known.came("alice", 64 * SMALL)
    assert known.expected("alice") == 64 * SMALL


@pytest.mark.parametrize(("size", "small"), [(SMALL, True), (SMALL + 1, False)])
def test_answers_are_taken_to_be_small_where_enough_and_all_were(size: int, small: bool) -> None:
    known = KnownAnswers("sha256:0")
    for _ in range(ENOUGH - 1):
        known.came("alice", 1)
    assert not known.are_small
    known.came("alice", size)
    assert known.are_small is small


def test_of_how_many_callers_something_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_reader, "MOST_KNOWN", 10)
    known = KnownAnswers("sha256:0")
    for number in range(100):
        known.came(f"user{number}", SMALL + 1)
        assert len(known._expected) <= 10
