"""By how much a process has grown since any moment."""

import random

from inferplane.server.rpc.intake.growth import GRAIN, LOWEST_OF, Growth, Weight


def test_it_has_grown_by_what_it_weighs_more_than_at_the_least_since_then() -> None:
    growth = Growth()
    for now, resident in enumerate([50, 10, 40, 20, 30]):
        growth.add(now, Weight(resident * GRAIN, 0))
    grown = [growth.since(moment + LOWEST_OF) // GRAIN for moment in (-1, 0, 1, 1.5, 2, 3, 4)]
    assert grown == [20, 20, 20, 10, 10, 10, 0]


def test_the_least_is_found_in_any_history() -> None:
    rng = random.Random(7)  # noqa: S311 - no secret
    growth, history = Growth(), []
    for now in range(1000):
        history.append(rng.randrange(100 * GRAIN))
        growth.add(now, Weight(history[-1], 0))
        moment = rng.randrange(now + 1)
        grown = history[-1] - min(history[moment:])
        assert grown <= growth.since(moment + LOWEST_OF) < grown + GRAIN


def test_what_grows_for_ever_is_kept_in_bounds_and_seen_as_it_is() -> None:
    growth, page = Growth(), 4096
    last = 4 * 3600 * 20
    for now in range(last + 1):
        growth.add(now, Weight(now * page, 0))
    assert len(growth._resident._kept) <= last * page // GRAIN + 1
    for moment in range(0, last, 997):
        grown = (last - moment) * page
        assert grown <= growth.since(moment + LOWEST_OF) < grown + GRAIN


def test_the_least_of_what_is_held_elsewhere_is_taken_by_itself() -> None:
    growth = Growth()
    for now, (resident, elsewhere) in enumerate([(100, 0), (100, 60), (130, 0)]):
        growth.add(now, Weight(resident * GRAIN, elsewhere * GRAIN))
    assert growth.since(0 + LOWEST_OF) == 30 * GRAIN


def test_what_began_before_calls_were_ended_is_not_forgotten_until_some_seconds_later() -> None:
    growth = Growth()
    for now in range(60):
        growth.add(now, Weight(now * GRAIN, 0))
    assert growth.since_oldest(20, 60) == 49 * GRAIN
    growth.hold(60)
    assert growth.since_oldest(50, 60 + LOWEST_OF - 1) == 49 * GRAIN
    assert growth.since_oldest(50, 60 + LOWEST_OF) == 19 * GRAIN
    assert growth.since_oldest(30, 61 + LOWEST_OF) == 39 * GRAIN


def test_what_it_has_grown_by_itself_is_forgotten() -> None:
    growth = Growth()
    for now in range(60):
        growth.add(now, Weight(now * GRAIN, 0))
    growth.forget()
    growth.add(60, Weight(70 * GRAIN, 0))
    assert growth.since(0) == 0
