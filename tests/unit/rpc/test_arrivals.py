"""What arrives slowly, in a process of which only the whole can be weighed."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from inferplane.common.v1.access_pb2 import AccessRule
from inferplane.server.errors import InferplaneError
from inferplane.server.identity.principal import Principal
from inferplane.server.rpc import arrivals as module
from inferplane.server.rpc.arrivals import LOOK_INTERVAL, LOWEST_OF, Arrivals
from inferplane.server.rpc.connections import Connections, Socket
from inferplane.server.rpc.methods import Method

MIB = 1 << 20
BASE = 100
"""MiB that the process takes by itself."""
BUDGET = 16


class Arriving:
    """A call of whose body, or next message, `held` MiB are there."""

    def __init__(self, user: str = "", *, streams: bool = False) -> None:
        access = AccessRule(authenticated=True) if user else AccessRule(public=True)
        self.method = Method("/s/m", "s", "m", access, streams=streams)
        self.principal = Principal(f"users/{user}")
        self.connection = f"ipv4:192.0.2.1:{user}"
        self.held = 0.0
        self.delivered = 0
        self.ended = ""

    def end(self, error: InferplaneError) -> None:
        self.ended = str(error)


class Process:
    """Takes what its calls hold. What ended calls held is used again first, and given back when it is told to. Each
    caller has one connection, of which the kernel tells how much it has brought, unless it does not. `overhead` are
    headers, in MiB a second of each."""

    def __init__(self, *, gives_back: bool = True, kernel_tells: bool = True, overhead: float = 0.0) -> None:
        self.arrivals = Arrivals(BUDGET * MIB, 60, lambda: self.connections)
        self.connections = Connections(LOWEST_OF, self.arrivals.arriving, self.sockets)
        self._gone: Counter[str] = Counter()
        self._passed: Counter[str] = Counter()
        self._kernel_tells = kernel_tells
        self._overhead = overhead
        self.own = BASE
        self.calls: list[Arriving] = []
        self.now = 1000.0
        self._gives_back = gives_back
        self._highest = 0.0

    def begin(self, *calls: Arriving) -> None:
        for call in calls:
            self.calls.append(call)
            some_call: Any = call
            if call.method.streams:
                self.arrivals.message(some_call)
            else:
                self.arrivals.body(some_call, self.now)

    def deliver(self, connection: str, size: int) -> None:
        """So many MiB came whole, and stay in memory because something beside them has not."""
        self._passed[connection] += size * MIB
        self.connections.deliver(connection, size * MIB)
        self.own += size

    @property
    def held(self) -> float:
        return sum(call.held for call in self.calls)

    def sockets(self) -> dict[str, Socket]:
        """What each connection has brought so far."""
        if not self._kernel_tells:
            return {}
        total = self._gone.copy()
        for call in self.calls:
            total[call.connection] += int(call.held * MIB)
        total.update(self._passed)
        headers = int(self._overhead * MIB * (self.now - 1000))
        return {name: Socket(1, size + headers) for name, size in total.items()}

    def look(self) -> list[Arriving]:
        """Those that are ended at the next look."""
        self.now += LOOK_INTERVAL
        self.connections.sample(self.now)
        self._highest = max(self._highest, self.own + self.held)
        give_back = self.arrivals.look(self.now, int(self._highest * MIB))
        ended = [call for call in self.calls if call.ended]
        for call in ended:
            self.calls.remove(call)
            self._gone[call.connection] += int(call.held * MIB)
            gone: Any = call
            self.arrivals.over(gone)
        if give_back and self._gives_back:
            self._highest = 0.0
        return ended

    def looks(self, count: int) -> list[Arriving]:
        return [call for _ in range(count) for call in self.look()]


def calls(count: int, user: str = "", *, streams: bool = False, held: float = 0.0) -> list[Arriving]:
    made = [Arriving(user, streams=streams) for _ in range(count)]
    for call in made:
        call.held = held
    return made


@pytest.mark.parametrize("overhead", [0.0, 0.02])
def test_a_process_that_grows_by_itself_ends_nothing(overhead: float) -> None:
    """Of those neither who make many small calls beside, whose headers are a part of what they bring."""
    process = Process(overhead=overhead)
    process.begin(*calls(4, "alice", streams=True), *calls(4, "alice"))
    process.looks(2)
    process.own += 40
    assert process.looks(200) == []


def test_who_keeps_more_in_memory_than_is_not_whole_goes_and_nobody_else() -> None:
    process = Process()
    process.looks(2)
    bobs = calls(2, "bob", held=1.2)
    alices = calls(8, "alice", held=0.05)
    process.begin(*bobs, *alices)
    while not all(call.ended for call in alices):
        process.deliver(alices[0].connection, 1)
        process.look()
        assert process.own < BASE + 2 * BUDGET
    process.own = BASE
    process.looks(100)
    assert not any(call.ended for call in bobs)


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
def test_who_has_brought_little_of_it_loses_nothing(streams: bool) -> None:
    process = Process()
    process.looks(2)
    bobs = calls(2, "bob", streams=streams, held=1)
    process.begin(*bobs)
    most = pour(process, [lambda: calls(20, "alice", streams=streams)], 1.0)
    assert not any("hold too much" in call.ended for call in bobs)
    assert most < 2 * BUDGET + 6


@pytest.mark.parametrize("streams", [False, True], ids=["bodies", "streams"])
def test_the_newest_half_of_the_heaviest_caller_goes_first(streams: bool) -> None:
    process = Process()
    bobs, alices = calls(1, "bob", streams=streams, held=1), calls(6, "alice", streams=streams, held=2)
    process.begin(*bobs, *alices)
    process.own -= 13
    process.look()
    process.own += 13
    assert process.looks(10) == []
    for call in alices:
        call.held = 3
    assert process.look() == alices[3:]
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


def pour(
    process: Process,
    kinds: list[Callable[[], list[Arriving]]],
    rate: float,
    beside: Callable[[int], None] = lambda _look: None,
) -> float:
    """Each kind of attacker keeps his calls open and lets them take `rate` MiB a look together, up to 4 each, for five
    minutes, and `beside` happens before each look; the most that was held."""
    mine: list[list[Arriving]] = [[] for _ in kinds]
    most = 0.0
    for number in range(round(300 / LOOK_INTERVAL)):
        beside(number)
        for position, make in enumerate(kinds):
            mine[position] = [call for call in mine[position] if not call.ended]
            if len(mine[position]) < 20:
                fresh = make()[: 20 - len(mine[position])]
                process.begin(*fresh)
                mine[position] += fresh
            for call in mine[position]:
                call.held = min(4.0, call.held + rate / len(kinds) / 20)
        most = max(most, process.held)
        process.look()
    return most


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
