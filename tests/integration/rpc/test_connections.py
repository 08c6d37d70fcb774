"""What the kernel and we know of a connection together: how many bytes it has brought that are not whole yet."""

import socket

import pytest

from inferplane.server.rpc.intake.connections import Connections
from tests.support.http2 import RawConnection, raw_connection
from tests.support.mesh import until
from tests.support.paths import STREAM, WHO
from tests.support.stand import DataPlane, Waiting, as_user, data_plane, infer_request, running, who_am_i

MIB = 1 << 20
LARGE = infer_request(values=MIB // 4).SerializeToString()
FRAMED = b"\0" + len(LARGE).to_bytes(4, "big") + LARGE


def connections(plane: DataPlane) -> Connections:
    return plane.server.arrivals.connections


async def open_stream(plane: DataPlane, connection: RawConnection, user: str = "alice") -> tuple[int, str]:
    """A stream, and how its connection is called."""
    stream = await connection.open(STREAM, as_user(user))
    known = set(plane.server.calls._calls)
    await until(lambda: len(plane.server.calls._calls) == len(known) + 1)
    (call,) = plane.server.calls._calls - known
    return stream, call.connection


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_what_is_not_whole_counts_with_its_connection(host: str) -> None:
    async with (
        data_plane(host=host) as plane,
        raw_connection(plane.address) as pouring,
        raw_connection(plane.address) as idle,
    ):
        stream, heavy = await open_stream(plane, pouring)
        _, light = await open_stream(plane, idle, "bob")
        await pouring.send(stream, FRAMED[:-1])
        await until(lambda: connections(plane).undelivered()[heavy] > MIB)
        assert connections(plane).undelivered()[heavy] < MIB + (64 << 10)
        assert connections(plane).undelivered()[light] < 1 << 10


async def test_what_was_delivered_does_not_count() -> None:
    async with data_plane() as plane, raw_connection(plane.address) as connection:
        stream, name = await open_stream(plane, connection)
        for number in range(20):
            await connection.send(stream, FRAMED)
            await until(lambda: len(plane.triton.requests) > number)  # noqa: B023 - awaited here
        assert connections(plane).undelivered()[name] < 64 << 10


def connected(address: str, own: int = 0) -> socket.socket:
    """A socket connected to `host:port` from a port that others may use too."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", own))
    host, _, port = address.rpartition(":")
    made.connect((host, int(port)))
    return made


async def test_what_comes_to_one_of_our_ports_is_not_hidden_by_a_connection_to_another_from_the_same_address() -> None:
    async with data_plane() as plane, data_plane() as other:
        first = connected(plane.address)
        port = first.getsockname()[1]
        async with raw_connection(plane.address, first) as pouring:
            stream, name = await open_stream(plane, pouring)
            await pouring.send(stream, FRAMED[:-1])
            await until(lambda: connections(plane).undelivered()[name] > MIB)
            with connected(other.address, port):
                assert connections(plane).undelivered()[name] > MIB


async def test_a_body_that_was_delivered_counts_as_its_calls_while_that_goes_on() -> None:
    """A connection that is seen only then has brought nothing else."""
    waiting = Waiting()
    async with running(who_am_i(waiting)) as server, raw_connection(server.address) as connection:
        # A field that nobody knows: its number, its length, its bytes.
        body = b"\xfa\x7f\xe8\x07" + bytes(1000)
        stream = await connection.open(WHO, as_user())
        await connection.send(stream, b"\0" + len(body).to_bytes(4, "big") + body, last=True)
        await until(lambda: waiting.now == 1)
        assert [call.delivered for call in server.server.calls.open] == [len(body)]
        waiting.go.set()
        await until(lambda: stream in connection.ended)
