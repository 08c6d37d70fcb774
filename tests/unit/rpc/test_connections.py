"""What connections have brought that was not delivered, by what the kernel and the calls say."""

from inferplane.server.rpc.connections import INTERVAL, MOST_SAMPLES, Arriving, Connections, Socket

MIB = 1 << 20
WINDOW = 10.0
NAME = "ipv4:192.0.2.1:1"


class Kernel:
    """What it says of the connections, what arrives by them, and what was made of both."""

    def __init__(self) -> None:
        self.sockets: dict[str, Socket] = {}
        self.arriving: list[Arriving] = []
        self.now = 1000.0
        self.connections = Connections(WINDOW, lambda: self.arriving, lambda: self.sockets)

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


def test_what_came_seconds_ago_is_brought_no_more_where_nothing_arrives() -> None:
    kernel = Kernel()
    kernel.received(40 * MIB)
    kernel.samples(WINDOW)
    assert kernel.brought == 40 * MIB
    kernel.samples(2)
    assert kernel.brought == 0


def test_what_came_since_something_began_to_arrive_is_brought_however_long_ago() -> None:
    kernel = Kernel()
    kernel.received(MIB)
    kernel.samples(20)
    kernel.arriving = [Arriving(NAME, kernel.now, 0)]
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
    kernel.arriving = [Arriving(NAME, kernel.now, 39 * MIB)]
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


def test_what_was_received_counts_since_something_began_to_arrive() -> None:
    kernel = Kernel()
    kernel.received(10 * MIB)
    kernel.samples(5)
    kernel.arriving = [Arriving(NAME, kernel.now, 0)]
    kernel.received(30 * MIB)
    kernel.connections.deliver(NAME, 20 * MIB)
    kernel.samples(100)
    assert kernel.connections.received() == {NAME: 20 * MIB}
    kernel.arriving = [Arriving(NAME, kernel.now, 0)]
    assert kernel.connections.received() == {NAME: 0}
    kernel.arriving = []
    assert kernel.connections.received() == {}


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
