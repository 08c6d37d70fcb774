"""Keeps calls of one size under way, from a process of its own.

Usage: python -m tests.support.load ADDRESS MODEL sends|asks BYTES CALLS, with a token on standard input. A call sends
so many bytes, to a model that gives back what it gets, or asks for them from one that grows. Prints how many calls were
answered once each of them was for the first time, and again when its input ends, with which it ends.
"""

import asyncio
import struct
import sys
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tests.support.paths import INFER

PAUSE = 0.05
"""Seconds after which a call that was refused for lack of room is made again."""


def infer_request(model: str, size: int) -> bytes:
    """A request that carries `size` bytes."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[size // 4])
    request.raw_input_contents.append(bytes(size))
    body: bytes = request.SerializeToString()
    return body


def growth_request(model: str, size: int) -> bytes:
    """A small request for an answer of `size` bytes."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    request.raw_input_contents.append(struct.pack("<f", size // 4))
    body: bytes = request.SerializeToString()
    return body


REQUESTS = {"sends": infer_request, "asks": growth_request}


async def load(address: str, token: str, body: bytes, calls: int) -> None:
    answered = 0
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        call: Any = channel.unary_unary(INFER)

        async def one() -> None:
            nonlocal answered
            while True:
                try:
                    await call(body, metadata=[("authorization", f"Bearer {token}")])
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    await asyncio.sleep(PAUSE)
                else:
                    answered += 1
                    return

        async def keep_on() -> None:
            while True:
                await one()

        await asyncio.gather(*(one() for _ in range(calls)))
        print(answered, flush=True)
        calling = [asyncio.create_task(keep_on()) for _ in range(calls)]
        ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait([*calling, ending], return_when=asyncio.FIRST_COMPLETED)
        for task in calling:
            task.cancel()
        outcomes = await asyncio.gather(*calling, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
    print(answered)


if __name__ == "__main__":
    where, model, does, size, calls = sys.argv[1:]
    asyncio.run(load(where, sys.stdin.readline().strip(), REQUESTS[does](model, int(size)), int(calls)))
