"""What connections have brought that was not delivered, by what the kernel and the calls say."""

from typing import NamedTuple

from inferplane.server.rpc.intake.connections import HEADERS_COUNT, INTERVAL, MOST_SAMPLES, Connections
from inferplane.server.rpc.intake.sockets import Socket

MIB = 1 << 20
WINDOW = 10.0
NAME = "ipv4:192.0.2.1:1"


class OpenCall(NamedTuple):
    connection: str
    started: float
    delivered: int
    headers: int = 0


class Kernel:
    """What it says of the connections, which calls are open, and what was made of both."""

    def __init__(self) -> None:
        self.sockets: dict[str, Socket] = {}
        self.open: list[OpenCall] = []
        self.now = 1000.0
        self.connections = Connections(WINDOW, lambda: self.open, lambda: self.sockets)

    def received(self, size: int, inode: int = 1, name: str = NAME) -> None:
        self.sockets[name] = Socket(inode, size)

    def samples(self, seconds: float) -> None:
        for _ in range(round(seconds / INTERVAL)):
            self.now += INTERVAL
            self.connections.sample(self.now)

    @property
    def brought(self) -> int:
        return self.connections.undelivered()[NAME]


def test_what_was_delivered_is_not_brought() -> None:
    kernel = Kernel()
    kernel.received(0)
    kernel.samples(1)
    kernel.received(50 * MIB)
    kernel.connections.deliver(NAME, 49 * MIB)
    assert kernel.brought == MIB


def test_what_came_before_the_first_sample_is_brought() -> None:
    kernel = Kernel()
    kernel.received(40 * MIB)
    assert kernel.brought == 40 * MIB
    kernel.samples(1)
    assert kernel.brought == 40 * MIB


def test_what_came_seconds_ago_is_brought_no_more_where_no_call_is_open() -> None:
    kernel = Kernel()
    kernel.received(40 * MIB)
    kernel.samples(WINDOW)
    assert kernel.brought == 40 * MIB
    kernel.samples(2)
    assert kernel.brought == 0


def test_what_came_since_an_open_call_began_is_brought_however_long_ago() -> None:
    kernel = Kernel()
    kernel.received(MIB)
    kernel.samples(20)
    kernel.open = [OpenCall(NAME, kernel.now, 0)]
    kernel.received(41 * MIB)
    kernel.samples(900)
    assert kernel.brought == 40 * MIB
    assert len(kernel.connections._known[NAME].samples) <= MOST_SAMPLES


def test_what_an_earlier_connection_of_the_address_delivered_is_no_credit_of_a_later_one() -> None:
    kernel = Kernel()
    kernel.received(600 * MIB)
    kernel.samples(1)
    kernel.connections.deliver(NAME, 600 * MIB)
    kernel.received(40 * MIB, inode=2)
    assert kernel.brought == 40 * MIB
    kernel.samples(5)
    assert kernel.brought == 40 * MIB


def test_neither_is_it_where_the_earlier_one_was_never_seen() -> None:
    kernel = Kernel()
    kernel.connections.deliver(NAME, 600 * MIB)
    kernel.received(40 * MIB)
    kernel.samples(5)
    assert kernel.brought == 40 * MIB


def test_what_a_call_that_goes_on_was_given_came_by_this_connection() -> None:
    kernel = Kernel()
    kernel.open = [OpenCall(NAME, kernel.now, 39 * MIB)]
    kernel.connections.deliver(NAME, 39 * MIB)
    kernel.received(40 * MIB)
    assert kernel.brought == MIB


def test_what_a_new_connection_delivers_after_it_was_expected_is_its_own() -> None:
    kernel = Kernel()
    kernel.samples(1)
    kernel.connections.expect(NAME)
    kernel.received(0)
    kernel.connections.sample(kernel.now + 0.05)
    kernel.received(360 * MIB)
    kernel.connections.deliver(NAME, 360 * MIB)
    assert kernel.brought == 0


def test_what_came_before_a_moment_is_not_brought_after_it() -> None:
    kernel = Kernel()
    kernel.open = [OpenCall(NAME, kernel.now, 0)]
    kernel.received(40 * MIB)
    kernel.samples(5)
    moment = kernel.now
    kernel.received(41 * MIB)
    kernel.samples(100)
    assert kernel.brought == 41 * MIB
    assert kernel.connections.undelivered(moment) == {NAME: MIB}


def test_all_that_came_since_the_oldest_open_call_began_may_be_kept() -> None:
    kernel = Kernel()
    kernel.received(10 * MIB)
    kernel.samples(5)
    kernel.open = [OpenCall(NAME, kernel.now, 0), OpenCall(NAME, kernel.now + 1, 0)]
    kernel.received(30 * MIB)
    kernel.connections.deliver(NAME, 20 * MIB)
    kernel.samples(100)
    moment = kernel.now
    kernel.received(35 * MIB)
    assert kernel.connections.kept() == {NAME: 25 * MIB}
    assert kernel.connections.kept(moment) == {NAME: 5 * MIB}
    kernel.open = [OpenCall(NAME, kernel.now, 0)]
    assert kernel.connections.kept() == {NAME: 5 * MIB}


def test_headers_of_calls_may_be_kept_however_few_of_their_bytes_came() -> None:
    kernel = Kernel()
    kernel.received(0)
    kernel.samples(1)
    kernel.open = [OpenCall(NAME, kernel.now, 0, 1000)] * 100
    moment = kernel.now + 1
    assert kernel.connections.kept() == {NAME: 100_000 * HEADERS_COUNT}
    assert kernel.connections.kept(moment) == {NAME: 0}


def test_what_came_with_the_call_between_two_samples_may_be_kept() -> None:
    kernel = Kernel()
    kernel.received(10 * MIB)
    kernel.samples(5)
    kernel.open = [OpenCall(NAME, kernel.now + INTERVAL / 2, 0)]
    kernel.received(30 * MIB)
    kernel.samples(100)
    assert kernel.connections.kept() == {NAME: 20 * MIB}


def test_of_a_connection_without_calls_what_belongs_to_none_may_be_kept() -> None:
    kernel = Kernel()
    kernel.received(0)
    kernel.samples(1)
    kernel.received(50 * MIB)
    kernel.connections.deliver(NAME, 20 * MIB)
    assert kernel.connections.kept() == {NAME: 30 * MIB}


def test_nobody_has_credit() -> None:
    kernel = Kernel()
    kernel.received(0)
    kernel.samples(1)
    kernel.connections.deliver(NAME, MIB)
    assert kernel.brought == 0


def test_where_no_descriptor_is_left_to_look_with_nothing_is_forgotten() -> None:
    kernel = Kernel()
    kernel.received(50 * MIB)
    kernel.samples(1)
    kernel.connections.deliver(NAME, 50 * MIB)
    kernel.sockets = {}
    kernel.samples(5)
    kernel.received(50 * MIB)
    assert kernel.brought == 0


def test_connections_that_are_gone_are_forgotten() -> None:
    kernel = Kernel()
    kernel.received(MIB)
    kernel.received(MIB, name="ipv4:192.0.2.1:2")
    kernel.connections.deliver(NAME, MIB)
    kernel.samples(1)
    del kernel.sockets[NAME]
    kernel.samples(1)
    assert set(kernel.connections._known) == {"ipv4:192.0.2.1:2"}
    assert not kernel.connections._delivered[NAME]


def test_a_connection_that_comes_while_all_are_looked_at_is_seen_the_next_time() -> None:
    kernel = Kernel()
    kernel.received(MIB)
    kernel.samples(1)
    counted: list[int] = []

    def sockets() -> dict[str, Socket]:
        counted.append(1)
        return {f"{NAME}{number}": Socket(number, 0) for number in range(len(counted))}

    kernel.connections._sockets = sockets
    for _ in range(5):
        assert len(kernel.connections.undelivered()) == len(counted)
        assert len(kernel.connections.kept()) == len(counted)
