"""Who keeps more in memory than is not whole of it loses his connections; simulated for minutes, as who pours is."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from inferplane.server.rpc.intake.arrivals import LOOK_INTERVAL
from tests.support.weighed_process import BASE, BUDGET, Arriving, Process, calls

FIVE_MINUTES = round(300 / LOOK_INTERVAL)


def unread(process: Process, user: str = "") -> list[Arriving]:
    """A stream whose client does not read, so that it is not read either."""
    made = calls(1, user, streams=True)
    process.begin(*made)
    process.unread(*made)
    return made


def endless(process: Process, user: str = "") -> list[Arriving]:
    """A body of which next to nothing is there."""
    made = calls(1, user)
    process.begin(*made)
    return made


def keep(
    process: Process,
    rates: dict[str, float],
    begin: Callable[[Process, str], list[Arriving]],
    beside: Callable[[], None] = lambda: None,
    *,
    seconds: float = 300,
) -> float:
    """Each user lets so many MiB a look be kept, anew when his connection was closed, and `beside` happens before each
    look; the most that was held."""
    theirs: dict[str, list[Arriving]] = {user: [] for user in rates}
    most = 0.0
    for _ in range(round(seconds / LOOK_INTERVAL)):
        beside()
        for user, rate in rates.items():
            if all(call.ended for call in theirs[user]):
                theirs[user] = begin(process, user)
            process.deliver(theirs[user][0].connection, rate, kept=True)
        most = max(most, process.held)
        process.look()
    return most


@pytest.mark.parametrize("rate", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("begin", [unread, endless])
@pytest.mark.parametrize("user", ["alice", ""], ids=["known", "a stranger"])
def test_whoever_keeps_for_minutes_holds_no_more_than_twice_the_budget_and_ends_nothing_of_others(
    user: str, begin: Callable[[Process, str], list[Arriving]], rate: float
) -> None:
    process = Process()
    process.looks(2)
    bobs = calls(2, "bob", held=0.5, streams=True)
    process.begin(*bobs)
    most = keep(process, {user: rate}, begin)
    assert not any(call.ended for call in bobs)
    assert most < 2 * BUDGET + 6 * rate


@pytest.mark.parametrize("keepers", [2, 10, 50])
def test_however_many_they_are(keepers: int) -> None:
    process = Process()
    process.looks(2)
    most = keep(process, {f"user{number}": 1 / keepers for number in range(keepers)}, unread)
    assert most < 1.5 * BUDGET


def pass_through(process: Process, user: str, rate: float) -> Callable[[], None]:
    """Somebody who waits by a stream, again whenever it is ended, and makes large calls beside it."""
    stream = calls(1, user, streams=True)

    def look() -> None:
        if stream[0] not in process.calls:
            stream[:] = calls(1, user, streams=True)
            process.begin(*stream)
        process.deliver(stream[0].connection, rate)

    return look


@pytest.mark.parametrize(("rate", "losses"), [(0.2, 0), (2.0, 1)])
def test_who_makes_large_calls_beside_a_stream_loses_his_connection_until_it_is_known_who_keeps(
    rate: float, losses: int
) -> None:
    """More is passed on of his than the other one keeps: which of both it is shows only when his connection is gone."""
    process = Process()
    bob = pass_through(process, "bob", rate)
    bob()
    process.looks(2)
    alices: list[Arriving] = []
    for _ in range(FIVE_MINUTES):
        bob()
        if all(call.ended for call in alices):
            alices = unread(process, "alice")
        process.deliver(alices[0].connection, 0.5, kept=True)
        process.look()
        assert process.held < 3 * BUDGET
    closed = Counter(process.closed)
    assert closed.pop(alices[0].connection) > 100
    assert sum(closed.values()) == losses


def test_what_was_passed_on_before_the_process_grew_is_not_the_reason() -> None:
    process = Process()
    bob = pass_through(process, "bob", 1)
    for _ in range(200):
        bob()
        process.look()
    keep(process, {"alice": 2}, unread, bob, seconds=2)
    assert set(process.closed) == {"ipv4:192.0.2.1:alice"}


def test_whose_end_helped_once_is_not_the_first_for_ever() -> None:
    process = Process()
    process.looks(2)
    keep(process, {"alice": 2}, unread, seconds=2)
    assert set(process.closed) == {"ipv4:192.0.2.1:alice"}
    alice = pass_through(process, "alice", 1)
    process.closed.clear()
    keep(process, {"bob": 2}, unread, alice, seconds=60)
    closed = Counter(process.closed)
    assert closed.pop("ipv4:192.0.2.1:bob") > 10
    assert sum(closed.values()) < 5


def test_who_may_have_kept_least_stays_where_others_go_in_vain() -> None:
    process = Process()
    bob, carol = pass_through(process, "bob", 2.5), pass_through(process, "carol", 0.01)
    process.looks(2)

    def beside() -> None:
        bob()
        carol()

    keep(process, {"alice": 1}, unread, beside, seconds=60)
    assert set(process.closed) == {"ipv4:192.0.2.1:alice", "ipv4:192.0.2.1:bob"}


def test_a_connection_counts_with_who_has_its_oldest_call() -> None:
    process = Process()
    process.looks(2)
    shared = calls(1, "alice", streams=True) + calls(1, "bob", streams=True)
    for call in shared:
        call.connection = "ipv4:192.0.2.9:1"
        process.begin(call)
        process.look()
    keep(process, {"alice": 2}, unread, seconds=2)
    assert set(process.closed) == {"ipv4:192.0.2.9:1", "ipv4:192.0.2.1:alice"}


def test_who_has_his_bytes_thrown_away_does_not_stand_for_who_keeps() -> None:
    process = Process()
    decoy = calls(1, "alice", streams=True)
    process.begin(*decoy)
    process.looks(2)
    bobs: list[Arriving] = []
    for _ in range(FIVE_MINUTES):
        process.throw_away(decoy[0].connection, 2)
        if decoy[0].ended:
            decoy = calls(1, "alice", streams=True)
            process.begin(*decoy)
        if all(call.ended for call in bobs):
            bobs = unread(process, "bob")
        process.deliver(bobs[0].connection, 0.5, kept=True)
        process.look()
        assert process.held < 3 * BUDGET


@pytest.mark.parametrize(("looks", "losses"), [(1, 0), (40, 3)], ids=["at once", "in two seconds"])
def test_where_a_process_grows_by_itself_who_makes_large_calls_loses_few_connections(looks: int, losses: int) -> None:
    process = Process()
    bob = pass_through(process, "bob", 1)
    bob()
    process.looks(2)
    for look in range(FIVE_MINUTES):
        bob()
        process.own += 40 // looks if look < looks else 0
        process.look()
    assert len(process.closed) == losses


def test_who_may_have_kept_little_of_it_loses_nothing() -> None:
    process = Process()
    streams = [pass_through(process, f"user{number}", 0.001) for number in range(20)]
    for stream in streams:
        stream()
    process.looks(2)
    process.own += 40
    for _ in range(FIVE_MINUTES):
        for stream in streams:
            stream()
        process.look()
    assert process.closed == []


def test_bytes_that_belong_to_no_call_count_with_their_connection() -> None:
    process = Process()
    some_call: Any = calls(1, "alice", streams=True)[0]
    process.begin(some_call)
    process.looks(2)
    while "ipv4:192.0.2.9:1" not in process.closed:
        process.throw_away("ipv4:192.0.2.9:1", 1)
        process.own += 1
        process.look()
        assert process.own < BASE + 2 * BUDGET
    assert not some_call.ended


@pytest.mark.parametrize(("size", "closes"), [(600, False), (16 << 10, True)], ids=["usual", "full"])
def test_who_has_calls_open_is_the_reason_only_where_their_headers_can_be(size: int, closes: bool) -> None:
    process = Process()
    process.looks(2)
    for look in range(40):
        made = calls(5, f"user{look % 10}", streams=True)
        for call in made:
            call.headers = size
        process.begin(*made)
        process.own += 0.5
        process.look()
    process.looks(20)
    assert bool(process.closed) is closes
