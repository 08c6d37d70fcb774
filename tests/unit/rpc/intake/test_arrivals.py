"""What arrives slowly, in a process of which only the whole can be weighed."""

import pytest

from inferplane.server.rpc.intake import arrivals as module
from tests.support.weighed_process import BUDGET, MIB, Process, calls


@pytest.mark.parametrize("overhead", [0.0, 0.02])
def test_a_process_that_grows_by_itself_ends_nothing(overhead: float) -> None:
    """Of those neither who make many small calls beside, whose headers are a part of what they bring."""
    process = Process(overhead=overhead)
    process.begin(*calls(4, "alice", streams=True), *calls(4, "alice"))
    process.looks(2)
    process.own += 40
    assert process.looks(200) == []


def test_who_has_held_much_for_long_goes_before_who_brings_less_now() -> None:
    process = Process()
    process.looks(2)
    alices = calls(1, "alice", streams=True, held=12)
    process.begin(*alices)
    assert process.looks(6000) == []
    process.begin(*calls(1, "bob", streams=True, held=6))
    assert process.looks(10) == alices
    assert process.looks(200) == []


@pytest.mark.parametrize("streams", [False, True], ids=["bodies", "streams"])
def test_the_newest_half_of_the_heaviest_caller_goes_first(streams: bool) -> None:
    process = Process()
    bobs, alices = calls(1, "bob", streams=streams), calls(6, "alice", streams=streams)
    process.begin(*bobs, *alices)
    process.look()
    bobs[0].held = 1
    for call in alices:
        call.held = 2
    assert process.looks(10) == []
    for call in alices:
        call.held = 3
    assert process.looks(3) == alices[3:]
    assert process.looks(20) == []


def test_bodies_that_come_again_go_all() -> None:
    process = Process()
    process.look()
    went = []
    for _ in range(3):
        process.begin(*calls(4, "alice", held=3), *calls(3, "bob", held=3))
        went.append([call.principal.subject for call in process.looks(5)])
    assert went[0] == ["users/alice"] * 2
    assert set(went[1]) == {"users/alice"}
    assert set(went[2]) == {"users/alice", "users/bob"}
    assert process.held == 0


def test_who_has_brought_little_does_not_go_where_the_end_of_the_heaviest_is_not_seen() -> None:
    process = Process(gives_back=False)
    process.looks(2)
    process.begin(*calls(3, "bob", held=0.6), *calls(8, "alice", held=3))
    assert [call.principal.subject for call in process.looks(200)] == ["users/alice"] * 8


def test_who_has_brought_little_is_not_the_reason_where_the_process_grows_by_itself() -> None:
    process = Process()
    process.begin(*calls(1, "bob", held=2), *calls(1, "bob", held=2, streams=True))
    process.looks(2)
    process.own += 100
    assert process.looks(200) == []


def test_streams_go_where_the_end_of_all_bodies_was_in_vain() -> None:
    process = Process()
    waiting = calls(4, "alice", streams=True)
    process.begin(*waiting, *calls(1, "alice"))
    process.looks(2)
    for call in waiting:
        call.held = 6
    ended = process.looks(100)
    assert sorted(call.method.streams for call in ended) == [False, True, True]
    assert process.held == 12


def test_streams_stay_while_the_end_of_bodies_helps() -> None:
    process = Process()
    waiting = calls(20, "bob", streams=True)
    process.begin(*waiting)
    process.looks(2)
    for _ in range(20):
        process.begin(*calls(3, "alice", held=6))
        process.looks(15)
    assert not any(call.ended for call in waiting)


def test_a_process_that_grows_by_itself_ends_what_arrives_once_where_the_kernel_does_not_tell_who_it_is() -> None:
    process = Process(kernel_tells=False)
    process.begin(*calls(4, "alice", streams=True), *calls(4, "alice"))
    process.looks(2)
    process.own += 40
    assert len(process.looks(200)) == 8
    process.begin(*calls(4, "alice", streams=True), *calls(4, "alice"))
    assert process.looks(400) == []


def test_without_giving_back_more_goes_and_it_ends() -> None:
    process = Process(gives_back=False)
    process.looks(2)
    process.begin(*calls(8, "alice", held=3))
    assert len(process.looks(200)) == 8
    process.begin(*calls(4, "alice"))
    assert process.looks(200) == []


def test_what_is_held_elsewhere_is_not_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUBLIC_BUDGET", BUDGET * MIB)
    process = Process(kernel_tells=False)
    process.begin(*calls(2), *calls(2, "alice"))
    process.looks(2)
    process.own += 30 + BUDGET
    process.arrivals.held_elsewhere = lambda: 30 * MIB
    assert process.looks(10) == []
    process.arrivals.held_elsewhere = lambda: 29 * MIB
    assert len(process.looks(2)) == 3


def test_strangers_all_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUBLIC_BUDGET", 4 * MIB)
    process = Process()
    known = calls(2, "alice")
    process.looks(2)
    strangers = calls(3, held=2)
    process.begin(*known, *strangers)
    assert process.look() == strangers
    assert process.looks(5) == []


def test_streams_of_strangers_do_not_push_out_their_slow_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PUBLIC", 3)
    process = Process()
    bodies = calls(3)
    process.begin(*bodies, *calls(10, streams=True))
    assert process.look() == []
    process.begin(*calls(1))
    assert process.look() == bodies[:1]


def test_a_body_that_takes_too_long_goes() -> None:
    process = Process()
    known, public = calls(1, "alice"), calls(1)
    process.begin(*known, *public)
    assert process.looks(98) == []
    assert process.looks(4) == public
    assert process.looks(1150) == known


def test_what_was_ended_after_a_giving_back_began_is_given_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PUBLIC_BUDGET", 2 * MIB)
    process = Process()
    process.look()
    for _ in range(2):
        process.begin(*calls(1, held=4))
        assert len(process.look()) == 1
    process.looks(10)
    process.begin(*calls(1))
    assert process.looks(5) == []


def test_what_is_counted_elsewhere_and_is_not_in_memory_ends_nothing() -> None:
    process = Process()
    process.begin(*calls(4), *calls(4, "alice", streams=True))
    process.looks(2)
    process.arrivals.held_elsewhere = lambda: 600 * MIB
    process.look()
    process.arrivals.held_elsewhere = lambda: 0
    process.begin(*calls(4), *calls(4, "alice", streams=True))
    assert process.looks(20) == []
