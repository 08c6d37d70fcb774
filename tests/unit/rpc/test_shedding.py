"""Whose connections go, step by step."""

from inferplane.server.rpc.shedding import EPISODE, SUSPECTED, ConnectionsToClose

GROWTH = 3200


def steps(to_close: ConnectionsToClose, sizes: dict[str, int], *moments: float) -> list[str]:
    """Who goes at each of these moments, as one letter each, if none of it helps. Each has one connection."""
    kept = {owner: {f"ipv4:{owner}:1": size} for owner, size in sizes.items()}
    return ["".join(sorted(to_close.next(kept, GROWTH, now))) for now in moments]


def test_at_each_step_at_least_twice_as_many_go() -> None:
    sizes = dict.fromkeys("bcdefgh", GROWTH) | {"a": 2 * GROWTH}
    assert [len(gone) for gone in steps(ConnectionsToClose(), sizes, 1, 2, 3, 4)] == [1, 2, 4, 8]


def test_as_many_go_as_may_have_kept_half_of_the_growth() -> None:
    sizes = dict.fromkeys("abcdefgh", GROWTH // 8)
    assert [len(gone) for gone in steps(ConnectionsToClose(), sizes, 1, 2)] == [4, 8]


def test_a_step_seconds_later_begins_anew() -> None:
    sizes = dict.fromkeys("ab", GROWTH)
    assert [len(gone) for gone in steps(ConnectionsToClose(), sizes, 1, 2, 2 + EPISODE)] == [1, 2, 1]


def test_who_may_have_kept_less_than_a_share_of_an_eighth_stays() -> None:
    sizes = {"a": GROWTH, "b": GROWTH // 8 // 4, "c": GROWTH // 8 // 4 - 1, "d": 0}
    assert steps(ConnectionsToClose(), sizes, 1, 2, 3) == ["a", "ab", "ab"]


def test_whose_end_helped_goes_first_for_ten_minutes() -> None:
    to_close, sizes = ConnectionsToClose(), {"a": 3 * GROWTH, "b": 2 * GROWTH}
    assert steps(to_close, sizes, 1, 2) == ["a", "ab"]
    to_close.helped(3)
    assert steps(to_close, sizes, 2 + SUSPECTED) == ["b"]
    to_close.helped(3 + SUSPECTED)
    assert steps(to_close, sizes, 4 + 2 * SUSPECTED) == ["a"]


def test_whose_end_helps_no_more_is_one_among_the_others() -> None:
    to_close, sizes = ConnectionsToClose(), {"a": 3 * GROWTH, "b": 2 * GROWTH}
    assert steps(to_close, sizes, 1, 2) == ["a", "ab"]
    to_close.helped(3)
    assert steps(to_close, sizes, 20, 21) == ["b", "ab"]
    to_close.helped(22)
    assert steps(to_close, sizes, 40) == ["a"]


def test_all_connections_of_who_goes_go_with_what_they_may_have_kept() -> None:
    kept = {"a": {"ipv4:a:1": 5, "ipv4:a:2": GROWTH}, "b": {"ipv4:b:1": GROWTH}}
    assert ConnectionsToClose().next(kept, GROWTH, 1) == {"a": kept["a"]}
