"""What is expected of an answer is the largest recent one, of the caller's own if there was any."""

from inferplane.server.inference.dataplane import answer_sizes
from inferplane.server.inference.dataplane.answer_sizes import AnswerSizes

UNKNOWN, LARGE, SMALL = 1000, 28_000_000, 10


def test_of_an_answer_of_which_nothing_is_known_the_size_for_such_is_expected() -> None:
    sizes = AnswerSizes(UNKNOWN)
    sizes.learn("a", "other", LARGE, 0)
    assert sizes.expected("a", "m") == UNKNOWN


def test_of_a_caller_without_answers_what_others_got_is_expected() -> None:
    sizes = AnswerSizes(UNKNOWN)
    sizes.learn("a", "m", SMALL, 0)
    assert sizes.expected("b", "m") == SMALL
    sizes.learn("a", "m", LARGE, 0)
    assert sizes.expected("b", "m") == LARGE


def test_large_answers_of_others_count_no_more_once_a_caller_has_had_one() -> None:
    sizes = AnswerSizes(UNKNOWN)
    sizes.learn("a", "m", LARGE, 0)
    sizes.learn("b", "m", SMALL, 0)
    sizes.learn("a", "m", LARGE, 0)
    assert sizes.expected("b", "m") == SMALL
    assert sizes.expected("a", "m") == LARGE


def test_small_answers_in_a_row_do_not_hide_the_large_one_before_them() -> None:
    sizes = AnswerSizes(UNKNOWN)
    sizes.learn("a", "m", LARGE, 0)
    for _ in range(1000):
        sizes.learn("a", "m", SMALL, 0.9)
    assert sizes.expected("a", "m") == LARGE


def test_a_large_answer_is_forgotten_while_small_ones_come() -> None:
    sizes = AnswerSizes(UNKNOWN)
    sizes.learn("a", "m", 8000, 0)
    expected = []
    for second in range(1, 60):
        sizes.learn("a", "m", SMALL, second)
        sizes.learn("a", "m", SMALL, second)
        expected.append(sizes.expected("a", "m"))
    assert expected[:2] == [7000, 6125]
    assert expected[-1] == SMALL


def test_no_more_is_kept_than_what_was_answered_last() -> None:
    sizes = AnswerSizes(UNKNOWN)
    sizes.learn("keen", "m", SMALL, 0)
    for number in range(2 * answer_sizes.PAIRS):
        sizes.learn(f"caller-{number}", f"deployment-{number}", LARGE, 0)
        sizes.learn("keen", "m", SMALL, 0)
    assert len(sizes._of_pairs) == answer_sizes.PAIRS
    assert len(sizes._of_deployments) == answer_sizes.DEPLOYMENTS
    assert sizes.expected("keen", "m") == SMALL
    assert sizes.expected("caller-0", "deployment-0") == UNKNOWN
