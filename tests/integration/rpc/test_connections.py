"""How many calls at once one connection is good for."""

import asyncio
from typing import Any

import grpc

from inferplane.auth.v1 import auth_service_pb2 as pb
from tests.support.mesh import until
from tests.support.stand import WHO, bearer, running, who_am_i

MOST = 3


class Waiting:
    """WhoAmI, which answers once `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.now = 0

    async def __call__(self, _request: Any, _context: Any) -> pb.WhoAmIResponse:
        self.now += 1
        await self.go.wait()
        self.now -= 1
        return pb.WhoAmIResponse()


async def test_calls_beyond_the_most_of_a_connection_wait_for_those_before_them() -> None:
    waiting = Waiting()
    async with (
        running(who_am_i(waiting), max_streams_per_connection=MOST) as server,
        grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as other,
    ):
        calls = asyncio.gather(*(server.call() for _ in range(20)))
        await until(lambda: waiting.now >= MOST)
        # Calls that come later, by a connection with places, are handled all the same.
        method: Any = other.unary_unary(WHO)
        others = asyncio.gather(*(method(b"", metadata=bearer("bob")) for _ in range(MOST)))
        await until(lambda: waiting.now >= 2 * MOST)
        assert waiting.now == 2 * MOST
        waiting.go.set()
        await others
        await calls
