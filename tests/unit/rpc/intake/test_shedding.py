"""Whose connections go, step by step."""

from inferplane.server.rpc.intake.shedding import DEAREST, MOST_AGAIN, NEGLIGIBLE, SUSPECTED, ConnectionsToClose

GROWTH = 3200


def steps(to_close: ConnectionsToClose, sizes: dict[str, int], *moments: float) -> list[str]:
    """Who goes at each of these moments, as one letter each, if none of it helps. Each has one connection."""
    kept = {owner: {f"ipv4:{owner}:1": size} for owner, size in sizes.items()}
    return ["".join(sorted(to_close.next(kept, GROWTH, now))) for now in moments]


def helped(to_close: ConnectionsToClose, sizes: dict[str, int], now: float) -> None:
    to_close.helped({owner: {f"ipv4:{owner}:1": size} for owner, size in sizes.items()}, now)


def test_at_each_step_at_least_twice_as_many_go() -> None:
    sizes = dict.fromkeys("bcdefgh", GROWTH) | {"a": 2 * GROWTH}
    assert [len(gone) for gone in steps(ConnectionsToClose(), sizes, 1, 2, 3, 4)] == [1, 2, 4, 8]


def test_no_more_go_where_those_who_went_come_again() -> None:
    to_close, kept = ConnectionsToClose(), {"a": {"ipv4:a:1": GROWTH}, "b": {"ipv4:b:1": GROWTH // 2}}
    assert [[*to_close.next(kept, GROWTH, now, came_again=now > 1)] for now in (1, 2, 3)] == [["a"]] * 3


def test_as_many_go_as_may_have_kept_half_of_the_growth() -> None:
    sizes = dict.fromkeys("abcdefgh", GROWTH // 8)
    assert [len(gone) for gone in steps(ConnectionsToClose(), sizes, 1, 2)] == [4, 8]


def test_those_who_cannot_have_kept_a_quarter_together_stay() -> None:
    quarter = int(GROWTH * NEGLIGIBLE / DEAREST)
    sizes = {"a": GROWTH, "b": 2, "c": quarter // 2 - 2, "d": quarter // 2 + 1, "e": 0}
    to_close = ConnectionsToClose()
    assert steps(to_close, sizes, 1) == ["a"]
    assert not to_close.all_went_in_vain(False)
    assert steps(to_close, sizes, 2) == ["ad"]
    assert to_close.all_went_in_vain(False)


def test_one_who_cannot_have_kept_much_stays_beside_one_who_can() -> None:
    sizes = {"a": GROWTH // 3, "b": GROWTH // 8 // 5}
    assert steps(ConnectionsToClose(), sizes, 1, 2, 3) == ["a"] * 3


def test_who_can_have_kept_most_of_it_goes_where_the_growth_is_more_than_all_that_came() -> None:
    assert steps(ConnectionsToClose(), {"a": GROWTH // 4, "b": GROWTH // 16}, 1) == ["a"]


def test_where_others_have_left_nobody_is_suspected() -> None:
    to_close, sizes = ConnectionsToClose(), {"a": 3 * GROWTH, "b": 2 * GROWTH}
    assert steps(to_close, sizes, 1) == ["a"]
    assert not to_close.have_left({"b": {"ipv4:b:1": 2 * GROWTH}})
    assert to_close.have_left({"b": {"ipv4:b:2": GROWTH}})
    helped(to_close, {"a": GROWTH}, 2)
    assert steps(to_close, {"a": 2 * GROWTH, "b": 3 * GROWTH}, 3) == ["b"]


def test_whose_end_helped_goes_first_for_ten_minutes() -> None:
    to_close, sizes = ConnectionsToClose(), {"a": 3 * GROWTH, "b": 2 * GROWTH}
    assert steps(to_close, sizes, 1, 2) == ["a", "ab"]
    helped(to_close, sizes, 3)
    assert steps(to_close, sizes, 2 + SUSPECTED) == ["b"]
    helped(to_close, sizes, 3 + SUSPECTED)
    assert steps(to_close, sizes, 4 + 2 * SUSPECTED) == ["a"]


def test_whose_end_helps_no_more_is_one_among_the_others() -> None:
    to_close, sizes = ConnectionsToClose(), {"a": 3 * GROWTH, "b": 2 * GROWTH}
    assert steps(to_close, sizes, 1, 2) == ["a", "ab"]
    helped(to_close, sizes, 3)
    assert steps(to_close, sizes, 20, 21) == ["b", "ab"]
    helped(to_close, sizes, 22)
    assert steps(to_close, sizes, 40) == ["a"]


def test_all_connections_of_who_goes_go_with_what_they_may_have_kept() -> None:
    kept = {"a": {"ipv4:a:1": 5, "ipv4:a:2": GROWTH}, "b": {"ipv4:b:1": GROWTH}}
    assert ConnectionsToClose().next(kept, GROWTH, 1) == {"a": kept["a"]}


def test_those_who_come_again_and_again_are_not_the_reason_at_last() -> None:
    to_close, kept = ConnectionsToClose(), {"a": {"ipv4:a:1": GROWTH}}
    judged = []
    for now in range(8):
        to_close.next(kept, GROWTH, now, came_again=now > 0)
        judged.append(to_close.all_went_in_vain(came_again=True))
    assert judged == [False] * MOST_AGAIN + [True] * (8 - MOST_AGAIN)
    assert to_close.all_went_in_vain(came_again=False)
