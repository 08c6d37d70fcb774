"""How many calls at once one connection is good for."""

import asyncio
from typing import Any

import grpc

from tests.support.http2 import raw_connection
from tests.support.mesh import until
from tests.support.paths import WHO
from tests.support.stand import EMPTY_BODY, Waiting, as_user, running, who_am_i

MOST = 3


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
        others = asyncio.gather(*(method(b"", metadata=as_user("bob")) for _ in range(MOST)))
        await until(lambda: waiting.now >= 2 * MOST)
        assert waiting.now == 2 * MOST
        waiting.go.set()
        await others
        await calls


async def test_calls_of_who_opens_more_than_was_said_are_refused_and_the_others_answered() -> None:
    waiting = Waiting()
    async with (
        running(who_am_i(waiting), max_streams_per_connection=MOST) as server,
        raw_connection(server.address) as connection,
    ):
        await until(lambda: connection.most_streams == MOST)
        connection.ignore_most_streams()
        streams = [await connection.open(WHO, as_user()) for _ in range(10)]
        for stream in streams:
            await connection.send(stream, EMPTY_BODY, last=True)
        await until(lambda: connection.ended >= set(streams[MOST:]) and waiting.now == MOST)
        assert not connection.trailers
        assert waiting.most == MOST
        waiting.go.set()
        await until(lambda: connection.ended >= set(streams))
        assert {stream: trailers["grpc-status"] for stream, trailers in connection.trailers.items()} == dict.fromkeys(
            streams[:MOST], "0"
        )
