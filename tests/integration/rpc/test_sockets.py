"""The connections that a process has accepted: what the kernel says of them, and how they are taken away."""

import asyncio
import socket

import pytest

from inferplane.server.rpc.intake.sockets import Sockets
from tests.support.http2 import raw_connection
from tests.support.mesh import until
from tests.support.paths import STREAM
from tests.support.stand import as_user, data_plane


def name_of(connected: socket.socket) -> str:
    """How gRPC calls the other end of it."""
    host, port = connected.getsockname()[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_only_accepted_connections_are_there(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets = Sockets()
    with (
        socket.create_server((host, 0), family=family) as listening,
        socket.create_connection(listening.getsockname()[:2]) as client,
        listening.accept()[0] as served,
    ):
        client.sendall(bytes(1000))
        served.recv(1000, socket.MSG_WAITALL)
        # The client's own end is a socket of this process too.
        there = sockets.present()
        assert {name for name in there if name.endswith((name_of(client)[-6:], name_of(served)[-6:]))} == {
            name_of(client)
        }
        assert there[name_of(client)].received == 1000


def test_a_connection_stays_known_when_nothing_is_accepted_any_more() -> None:
    sockets = Sockets()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        served, _ = listening.accept()
        sockets.present()
    with client, served:
        assert name_of(client) in sockets.present()


def test_what_is_taken_away_is_reset_at_both_ends_and_others_go_on() -> None:
    sockets = Sockets()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ends = [(socket.create_connection(listening.getsockname()), listening.accept()[0]) for _ in range(2)]
        (client, served), (other, others) = ends
        client.sendall(b"not read yet")
        sockets.hang_up({name_of(client), "ipv4:192.0.2.1:1"})
        for end in (client, served):
            with pytest.raises(ConnectionResetError):
                end.recv(100)
        # Neither is anything that we have connected to.
        sockets.hang_up({name_of(served)})
        other.sendall(b"x")
        assert others.recv(1) == b"x"
        for end in (client, served, other, others):
            end.close()


async def test_the_calls_of_a_connection_that_is_taken_away_end_at_once_and_those_of_others_go_on() -> None:
    async with (
        data_plane() as plane,
        raw_connection(plane.address) as taken,
        raw_connection(plane.address) as kept,
    ):
        calls = plane.server.calls
        for _ in range(3):
            await taken.open(STREAM, as_user("alice"))
        await until(lambda: len(calls.open) == 3)
        connection = {call.connection for call in calls.open}
        stays = await kept.open(STREAM, as_user("bob"))
        await until(lambda: len(calls.open) == 4)
        assert Sockets().hang_up(connection) == 1
        await asyncio.wait_for(taken.closed.wait(), 10)
        await until(lambda: [call.principal.subject for call in calls.open] == ["users/bob"])
        assert stays not in kept.ended
