"""By how much a process has grown since any moment."""

import random

from inferplane.server.rpc.weights import MOST_KEPT, Weight, Weights


def test_it_has_grown_by_what_it_weighs_more_than_at_the_least_since_then() -> None:
    weights = Weights()
    for now, resident in enumerate([50, 10, 40, 20, 30]):
        weights.add(now, Weight(resident, 0))
    assert [weights.grown_since(moment) for moment in (-1, 0, 1, 1.5, 2, 3, 4)] == [20, 20, 20, 10, 10, 10, 0]


def test_the_least_is_found_in_any_history() -> None:
    rng = random.Random(7)  # noqa: S311 - no secret
    weights, history = Weights(), []
    for now in range(MOST_KEPT):
        history.append(rng.randrange(10_000))
        weights.add(now, Weight(history[-1], 0))
        moment = rng.randrange(now + 1)
        assert weights.grown_since(moment) == history[-1] - min(history[moment:])


def test_what_grows_for_ever_is_kept_in_bounds_and_never_seen_as_less() -> None:
    weights = Weights()
    for now in range(50 * MOST_KEPT):
        weights.add(now, Weight(now, 0))
    assert len(weights._resident._kept) <= MOST_KEPT
    last = 50 * MOST_KEPT - 1
    for moment in range(0, last, 997):
        assert last - moment <= weights.grown_since(moment)
    assert weights.grown_since(last - 100) == 100


def test_the_least_of_what_is_held_elsewhere_is_taken_by_itself() -> None:
    weights = Weights()
    for now, weight in enumerate([Weight(100, 0), Weight(100, 60), Weight(130, 0)]):
        weights.add(now, weight)
    assert weights.grown_since(0) == 30
