"""The gate between callers: what fits enters, the rest takes turns, nothing is kept of who has left."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from inferplane.server import fairness
from inferplane.server.errors import InferplaneError
from inferplane.server.fairness import BESIDE_FOR, FairGate, Presence


def gate(capacity: int = 4, each: int = 2, waiting: int = 100, waiting_each: int = 50) -> FairGate:
    return FairGate("full", capacity=capacity, each=each, waiting=waiting, waiting_each=waiting_each)


@asynccontextmanager
async def waiting_in(present: FairGate, *callers: str) -> AsyncIterator[tuple[list[str], list["asyncio.Task[None]"]]]:
    """One task per entry of `callers`, each of which waits; the order in which they get in."""
    order: list[str] = []

    async def enter(caller: str) -> None:
        await present.enter(caller, 1)
        order.append(caller)

    tasks = []
    for caller in callers:
        tasks.append(asyncio.create_task(enter(caller)))
        await asyncio.sleep(0)
    yield order, tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_place_that_is_handed_on_goes_to_the_same_caller_and_otherwise_to_the_next() -> None:
    present = gate(capacity=1)
    assert present.try_enter("a", 1)
    async with waiting_in(present, "b", "a", "a") as (order, _):
        for _ in range(3):
            present.hand_on("a", 1)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert order == ["a", "a", "b"]
        present.leave("b", 1)
    assert (present.inside, present.waiting, present._shares) == (0, 0, {})


async def test_a_place_is_not_handed_on_to_who_has_just_left() -> None:
    present = gate(capacity=1)
    assert present.try_enter("a", 1)
    async with waiting_in(present, "a", "b") as (order, tasks):
        tasks[0].cancel()
        present.hand_on("a", 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == ["b"]
        present.leave("b", 1)
    assert (present.inside, present.waiting, present._shares) == (0, 0, {})


def test_one_caller_gets_no_more_than_its_share() -> None:
    present = gate()
    assert [present.try_enter("a", 1) for _ in range(3)] == [True, True, False]
    assert present.try_enter("b", 1)


def test_all_callers_together_get_no_more_than_the_capacity() -> None:
    present = gate()
    assert all(present.try_enter(caller, 1) for caller in "abcd")
    assert not present.try_enter("e", 1)


def test_work_above_a_share_gets_in_where_its_caller_has_nothing_else_inside() -> None:
    present = gate()
    assert present.try_enter("a", 3)
    assert not present.try_enter("a", 1)
    assert present.try_enter("b", 1)


def test_work_above_the_capacity_gets_in_alone() -> None:
    present = gate()
    assert present.try_enter("a", 1000)
    assert not present.try_enter("b", 1)
    present.leave("a", 1000)
    assert present.try_enter("b", 1)
    assert not present.try_enter("a", 1000)


def shrinking_gate(present: Presence) -> FairGate:
    return FairGate("full", capacity=10, each=4, beside=(2, present), waiting=100, waiting_each=50)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The one moment that it is."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_who_came_a_moment_ago_is_here(now: list[float]) -> None:
    present = Presence()
    present.came("a")
    assert (present.others("a"), present.others("b")) == (False, True)
    present.came("b")
    now[0] += BESIDE_FOR / 2
    present.came("a")
    present.came("a")
    assert (present.others("a"), present.others("b")) == (True, True)
    now[0] += BESIDE_FOR / 2
    assert (present.others("a"), present.others("b")) == (False, True)
    now[0] += BESIDE_FOR / 2
    assert not present.others("b")


def test_a_caller_gets_less_while_another_is_here(now: list[float]) -> None:
    present = Presence()
    shared = shrinking_gate(present)
    assert [shared.try_enter("a", 1) for _ in range(5)] == [True] * 4 + [False]
    for _ in range(4):
        shared.leave("a", 1)
    present.came("b")
    assert [shared.try_enter("a", 1) for _ in range(3)] == [True, True, False]
    assert [shared.try_enter("b", 1) for _ in range(5)] == [True] * 4 + [False]
    now[0] += BESIDE_FOR
    assert [shared.try_enter("a", 1) for _ in range(3)] == [True, True, False]


def test_a_caller_who_has_more_than_the_smaller_share_gets_no_more_before_it_has_less() -> None:
    present = Presence()
    shared = shrinking_gate(present)
    assert [shared.try_enter("a", 1) for _ in range(5)] == [True] * 4 + [False]
    present.came("b")
    for _ in range(2):
        shared.leave("a", 1)
        assert not shared.try_enter("a", 1)
    shared.leave("a", 1)
    assert shared.try_enter("a", 1)


async def test_a_caller_has_the_larger_share_again_when_no_other_has_come_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    present = Presence()
    shared = shrinking_gate(present)
    present.came("b")
    assert [shared.try_enter("a", 1) for _ in range(2)] == [True, True]
    async with waiting_in(shared, *["a"] * 5) as (order, _):
        shared.leave("a", 1)
        await asyncio.sleep(0)
        assert len(order) == 1
        monkeypatch.setattr(fairness, "BESIDE_FOR", 0.0)
        shared.leave("a", 1)
        await asyncio.sleep(0)
        assert len(order) == 4


async def test_a_caller_with_one_piece_of_work_waits_for_one_piece_of_another_at_most() -> None:
    present = gate(capacity=1, each=1)
    assert present.try_enter("busy", 1)
    async with waiting_in(present, *["busy"] * 10, "quiet") as (order, _):
        for _ in range(2):
            present.leave(order[-1] if order else "busy", 1)
            await asyncio.sleep(0)
        assert order == ["busy", "quiet"] or order == ["quiet", "busy"]


async def test_nobody_overtakes_who_waits_for_room() -> None:
    present = gate(capacity=2, each=2)
    assert present.try_enter("a", 2)
    async with waiting_in(present, "b") as (order, _):
        assert not present.try_enter("c", 1)
        present.leave("a", 2)
        await asyncio.sleep(0)
        assert order == ["b"]


async def test_turns_are_equal_by_cost_so_that_little_work_does_not_wait_for_much() -> None:
    shared = gate(capacity=10, each=10)
    assert shared.try_enter("x", 10)
    order: list[str] = []

    async def work(caller: str, cost: int) -> None:
        await shared.enter(caller, cost)
        order.append(caller)
        shared.leave(caller, cost)

    tasks = [asyncio.create_task(work("much", 10)) for _ in range(2)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(work("little", 1)) for _ in range(25)]
    await asyncio.sleep(0)
    shared.leave("x", 10)
    await asyncio.gather(*tasks)
    first, second = (position for position, caller in enumerate(order) if caller == "much")
    assert 9 <= first <= 10
    assert 19 <= second <= 21


async def test_a_piece_that_takes_another_ones_place_is_not_due_before_its_time() -> None:
    """Who asks for much behind little, and takes the little back, does not come first."""
    shared = gate(capacity=10, each=10)
    assert shared.try_enter("x", 10)
    async with waiting_in(shared, "sly") as (order, tasks):
        much = asyncio.create_task(shared.enter("sly", 10))
        await asyncio.sleep(0)
        others = [asyncio.create_task(shared.enter("b", 5))]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        shared.leave("x", 10)
        await asyncio.sleep(0)
        assert (order, others[0].done(), much.done()) == ([], True, False)
        much.cancel()


async def test_too_much_waiting_is_refused_at_once() -> None:
    present = gate(capacity=1, each=1, waiting=3, waiting_each=2)
    assert present.try_enter("x", 1)
    async with waiting_in(present, "a", "a", "b"):
        for caller in ("a", "b"):
            with pytest.raises(InferplaneError):
                await present.enter(caller, 1)


async def test_who_gives_up_waiting_holds_nobody_up() -> None:
    present = gate(capacity=1, each=1)
    assert present.try_enter("x", 1)
    async with waiting_in(present, *["gone"] * 1000, "b") as (order, tasks):
        for task in tasks[:-1]:
            task.cancel()
        await asyncio.sleep(0)
        present.leave("x", 1)
        await asyncio.sleep(0)
        assert order == ["b"]


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_comes_and_goes_in_the_end_nothing_is_left(seed: int) -> None:
    choose = random.Random(seed)  # noqa: S311 - a test that must repeat
    present = gate(capacity=7, each=3, waiting=20, waiting_each=8)
    most = 0

    async def work(caller: str, cost: int, turns: int) -> None:
        nonlocal most
        try:
            await present.enter(caller, cost)
        except InferplaneError:
            return
        most = max(most, present.inside)
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            choose.choice([present.leave, present.hand_on])(caller, cost)

    tasks = []
    for _ in range(300):
        tasks.append(asyncio.create_task(work(choose.choice("abcde"), choose.randint(1, 9), choose.randint(0, 5))))
        if choose.random() < 0.3:
            choose.choice(tasks).cancel()
        if choose.random() < 0.5:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (present.inside, present.waiting, present._shares) == (0, 0, {})
    assert most <= 9


def displacing_gate() -> FairGate:
    """One inside, three waiting."""
    return FairGate("full", capacity=1, each=1, waiting=3, waiting_each=3, displace=True)


async def test_a_newcomer_takes_the_newest_place_of_whoever_waits_with_most() -> None:
    present = displacing_gate()
    assert present.try_enter("inside", 1)
    async with waiting_in(present, "a", "b", "a", "c") as (_, (oldest, other, newest, newcomer)):
        with pytest.raises(InferplaneError):
            await newest
        assert not any(task.done() for task in (oldest, other, newcomer))
        assert present.waiting == 3


async def test_a_newcomer_takes_no_place_of_who_waits_with_no_more_than_it_would() -> None:
    present = displacing_gate()
    assert present.try_enter("inside", 1)
    async with waiting_in(present, "a", "b", "c"):
        with pytest.raises(InferplaneError):
            await present.enter("d", 1)


async def test_who_is_displaced_and_cancelled_at_once_leaves_nothing_behind() -> None:
    present = displacing_gate()
    assert present.try_enter("inside", 1)
    async with waiting_in(present, "a", "b", "a") as (_, (_, _, newest)):
        newcomer = asyncio.create_task(present.enter("c", 1))
        asyncio.get_running_loop().call_soon(newest.cancel)
        await asyncio.wait([newest])
        assert newest.cancelled()
        assert (present.inside, present.waiting) == (1, 3)
        newcomer.cancel()
        await asyncio.wait([newcomer])
    present.leave("inside", 1)
    assert (present.inside, present.waiting, present._shares) == (0, 0, {})
