"""Who pours bodies and messages for minutes, and who is beside them."""

from collections.abc import Callable
from typing import Any

import pytest

from inferplane.server.rpc.intake import arrivals as module
from tests.support.weighed_process import BUDGET, MIB, Arriving, Process, calls, pour


@pytest.mark.parametrize(
    "kinds",
    [
        [lambda: calls(20, "alice")],
        [lambda: calls(20, "alice", streams=True)],
        [lambda: calls(20, "alice"), lambda: calls(20, "alice", streams=True)],
        [lambda: calls(20, "alice"), lambda: calls(20, "bob"), lambda: calls(20, "eve")],
        [lambda: calls(20, "alice", streams=True), lambda: calls(20, "bob", streams=True)],
    ],
    ids=["bodies", "streams", "both", "bodies of three", "streams of two"],
)
@pytest.mark.parametrize("rate", [0.2, 1.0, 2.0])
def test_whoever_pours_for_minutes_holds_no_more_than_twice_the_budget(
    kinds: list[Callable[[], list[Arriving]]], rate: float
) -> None:
    most = pour(Process(), kinds, rate)
    print(f"{most:.1f} MiB at most of {BUDGET}")
    assert most < 2 * BUDGET + 6 * rate


@pytest.mark.parametrize("rate", [0.2, 1.0, 2.0])
def test_a_trickle_of_public_calls_does_not_shield_who_pours(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    monkeypatch.setattr(module, "PUBLIC_BUDGET", 2 * MIB)
    process = Process()
    most = pour(process, [lambda: calls(20, "alice")], rate, lambda _look: process.begin(*calls(1)))
    assert most < 2 * BUDGET + 6 * rate


@pytest.mark.parametrize("streams", [False, True], ids=["bodies", "streams"])
@pytest.mark.parametrize("rate", [0.1, 1.0, 2.0])
def test_who_pours_ends_none_of_the_others(rate: float, streams: bool) -> None:
    process = Process()
    bobs: list[Arriving] = []

    def half_a_second_of_a_body(look: int) -> None:
        if look % 10 == 0:
            if bobs and not bobs[-1].ended:
                process.calls.remove(bobs[-1])
                gone: Any = bobs[-1]
                process.arrivals.over(gone)
            bobs.extend(calls(1, "bob", streams=streams, held=0.01))
            process.begin(bobs[-1])

    pour(process, [lambda: calls(20, "alice", streams=streams)], rate, half_a_second_of_a_body)
    assert not any(call.ended for call in bobs)


@pytest.mark.parametrize("streams", [False, True], ids=["bodies", "streams"])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("idle", [10, 40])
def test_who_pours_ends_nothing_of_those_who_wait(idle: int, rate: float, streams: bool) -> None:
    """However many they are, and however long they have been there."""
    process = Process()
    process.looks(2)
    bobs = calls(idle, "bob", streams=True)
    process.begin(*bobs)
    process.looks(2)
    most = pour(process, [lambda: calls(20, "alice", streams=streams)], rate)
    assert not any(call.ended for call in bobs)
    assert most < 2 * BUDGET + 6 * rate


def test_what_is_steadily_held_elsewhere_does_not_widen_the_budget() -> None:
    process = Process()
    process.own += 40
    process.arrivals.held_elsewhere = lambda: 40 * MIB
    assert pour(process, [lambda: calls(20, "alice")], 0.5) < 2 * BUDGET


@pytest.mark.parametrize("streams", [False, True], ids=["bodies", "streams"])
def test_who_has_brought_little_of_it_loses_nothing(streams: bool) -> None:
    process = Process()
    process.looks(2)
    bobs = calls(2, "bob", streams=streams, held=1)
    process.begin(*bobs)
    most = pour(process, [lambda: calls(20, "alice", streams=streams)], 1.0)
    assert not any("hold too much" in call.ended for call in bobs)
    assert most < 2 * BUDGET + 6
