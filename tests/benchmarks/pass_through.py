"""A bare grpc.aio server that forwards ModelInfer from bytes to bytes and does nothing else: the yardstick.

Run as a program: python -m tests.benchmarks.pass_through UPSTREAM HEADER VALUE; prints its port when it serves.
"""

import asyncio
import sys
from typing import Any

import grpc
import uvloop

SERVICE = "inference.GRPCInferenceService"
LIMIT = 64 << 20


async def serve(upstream: str, header: str, value: str) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMIT)])
    async with grpc.aio.insecure_channel(upstream, options=[("grpc.max_receive_message_length", LIMIT)]) as channel:
        infer: Any = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        metadata = ((header, value),)

        async def forward(body: bytes, _context: Any) -> bytes:
            answer: bytes = await infer(body, metadata=metadata, timeout=30)
            return answer

        handler: Any = grpc.unary_unary_rpc_method_handler(forward)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(*sys.argv[1:]))
