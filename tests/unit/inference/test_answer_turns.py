"""How many answers of a kind are on their way at once."""

import asyncio
import random

import pytest

from inferplane.server.inference.dataplane import answer_turns
from inferplane.server.inference.dataplane.answer_turns import FEWEST, HALF_LIFE, MOST, UNKNOWN, AnswerTurns, Kind

MIB = 1 << 20
KIND = Kind("users/alice", "m", 1)


class Turns(AnswerTurns):
    """With a clock that only the test moves."""

    def __init__(self) -> None:
        super().__init__(lambda: self.now)
        self.now = 1000.0

    def fill(self, kind: Kind = KIND) -> int:
        """How many turns there are; they are given back."""
        taken = 0
        while taken < 1000 and self.try_enter(kind):
            taken += 1
        for _ in range(taken):
            self.leave(kind)
        return taken

    def answer(self, size: int, kind: Kind = KIND) -> None:
        assert self.try_enter(kind)
        self.leave(kind, size)


def test_before_the_first_answer_there_are_a_few() -> None:
    assert Turns().fill() == MOST // UNKNOWN


def test_small_answers_wait_for_nothing() -> None:
    turns = Turns()
    turns.answer(100)
    assert turns.fill() == 1000


@pytest.mark.parametrize(("size", "fit"), [(MIB, 32), (5 * MIB, 7), (28 * MIB, FEWEST), (1000 * MIB, FEWEST)])
def test_as_many_as_fit_of_the_largest_and_at_least_a_few(size: int, fit: int) -> None:
    turns = Turns()
    turns.answer(100)
    turns.answer(size)
    turns.answer(100)
    assert turns.fill() == fit


def test_a_large_answer_is_forgotten_in_time_though_no_other_comes() -> None:
    turns = Turns()
    turns.answer(4 * MIB)
    assert turns.fill() == 8
    turns.now += HALF_LIFE
    assert turns.fill() == 16
    turns.now += 30 * HALF_LIFE
    assert turns.fill() == 1000


@pytest.mark.parametrize(
    "other",
    [Kind("users/bob", "m", 1), Kind("users/alice", "n", 1), Kind.of("users/alice", "m", bytes(100_000))],
    ids=["caller", "deployment", "magnitude"],
)
def test_another_kind_is_not_held_up(other: Kind) -> None:
    turns = Turns()
    turns.answer(28 * MIB)
    turns.answer(100, other)
    while turns.try_enter(KIND):
        pass
    assert turns.fill(other) == 1000


async def test_who_waits_goes_on_when_there_is_room() -> None:
    turns = Turns()
    turns.answer(28 * MIB)
    waiting = [asyncio.ensure_future(turns.enter(KIND)) for _ in range(FEWEST + 3)]
    await asyncio.sleep(0)
    turns.leave(KIND, 28 * MIB)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [turn.done() for turn in waiting] == [True] * (FEWEST + 1) + [False] * 2
    for turn in waiting:
        turn.cancel()


async def test_whatever_is_cancelled_nothing_is_lost() -> None:
    for seed in range(100):
        chance = random.Random(seed)  # noqa: S311 - no secret
        turns = Turns()
        turns.answer(28 * MIB)

        async def call(turns: Turns = turns, chance: random.Random = chance) -> None:
            await turns.enter(KIND)
            try:
                await asyncio.sleep(0)
            finally:
                turns.leave(KIND, chance.choice([None, 28 * MIB]))

        calls = [asyncio.ensure_future(call()) for _ in range(30)]
        for _ in range(20):
            await asyncio.sleep(0)
            chance.choice(calls).cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        state = turns._states[KIND]
        assert (state.under_way, len(state.waiting)) == (0, 0)


def test_kinds_that_nobody_uses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_turns, "KINDS", 10)
    turns = Turns()
    busy = Kind("users/busy", "m", 1)
    assert turns.try_enter(busy)
    for number in range(100):
        turns.answer(1, Kind(f"users/{number}", "m", 1))
    assert len(turns._states) == 10
    turns.leave(busy, 1)
