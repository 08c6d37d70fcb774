"""By how much a process has grown since any moment."""

import random

from inferplane.server.rpc.growth import LOWEST_OF, MOST_KEPT, Growth, Weight


def test_it_has_grown_by_what_it_weighs_more_than_at_the_least_since_then() -> None:
    growth = Growth()
    for now, resident in enumerate([50, 10, 40, 20, 30]):
        growth.add(now, Weight(resident, 0))
    assert [growth.since(moment + LOWEST_OF) for moment in (-1, 0, 1, 1.5, 2, 3, 4)] == [20, 20, 20, 10, 10, 10, 0]


def test_the_least_is_found_in_any_history() -> None:
    rng = random.Random(7)  # noqa: S311 - no secret
    growth, history = Growth(), []
    for now in range(MOST_KEPT):
        history.append(rng.randrange(10_000))
        growth.add(now, Weight(history[-1], 0))
        moment = rng.randrange(now + 1)
        assert growth.since(moment + LOWEST_OF) == history[-1] - min(history[moment:])


def test_what_grows_for_ever_is_kept_in_bounds_and_never_seen_as_less() -> None:
    growth = Growth()
    for now in range(50 * MOST_KEPT):
        growth.add(now, Weight(now, 0))
    assert len(growth._resident._kept) <= MOST_KEPT
    last = 50 * MOST_KEPT - 1
    for moment in range(0, last, 997):
        assert last - moment <= growth.since(moment + LOWEST_OF)
    assert growth.since(last - 100 + LOWEST_OF) == 100


def test_the_least_of_what_is_held_elsewhere_is_taken_by_itself() -> None:
    growth = Growth()
    for now, weight in enumerate([Weight(100, 0), Weight(100, 60), Weight(130, 0)]):
        growth.add(now, weight)
    assert growth.since(0 + LOWEST_OF) == 30


def test_what_began_before_calls_were_ended_is_not_forgotten_until_some_seconds_later() -> None:
    growth = Growth()
    for now in range(60):
        growth.add(now, Weight(now, 0))
    assert growth.since_oldest(20, 60) == 49
    growth.hold(60)
    assert growth.since_oldest(50, 60 + LOWEST_OF - 1) == 49
    assert growth.since_oldest(50, 60 + LOWEST_OF) == 19
    assert growth.since_oldest(30, 61 + LOWEST_OF) == 39


def test_what_it_has_grown_by_itself_is_forgotten() -> None:
    growth = Growth()
    for now in range(60):
        growth.add(now, Weight(now, 0))
    growth.forget()
    growth.add(60, Weight(70, 0))
    assert growth.since(0) == 0
