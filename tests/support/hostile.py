"""Throws hostile bytes at the data plane, from a process of its own.

Usage: python -m tests.support.hostile ADDRESS SEED SECONDS, with tokens on standard input, one a line. Prints how many
calls got which status, as JSON.
"""

import json
import random
import sys
import threading
import time
from collections import Counter
from typing import Any

import grpc

from inferplane.server.inference.wire import length_prefixed
from inferplane.server.settings import Settings
from tests.support.paths import INFER, PREDICT, STREAM

MIB = 1 << 20
LIMIT = Settings().max_tensor_message_size
METHODS = (
    INFER,
    PREDICT,
    "/inference.GRPCInferenceService/ModelReady",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
)


def body(choose: random.Random) -> bytes:
    """A message of up to the limit that begins well and goes on badly."""
    name = choose.choice([b"victim", b"nobody", b"m" * 200, b"deployments/victim", b"\xff", b"x" * MIB])
    size = choose.choice([10, 1000, 100_000, MIB, 8 * MIB, LIMIT - 100_000])
    number = choose.randint(1, 8)
    piece = choose.choice(
        [
            length_prefixed(number, b""),
            length_prefixed(number, length_prefixed(choose.randint(1, 9), b"")),
            bytes([number << 3, 1]),
            bytes([number << 3 | 3]),
            choose.randbytes(50),
        ]
    )
    rest = piece * (size // len(piece) + 1)
    if choose.random() < 0.5:
        rest = length_prefixed(choose.randint(1, 8), rest[:size])
    return length_prefixed(1, name) + rest[:size]


def attack(address: str, token: str, seed: int, end: float, statuses: "Counter[str]") -> None:
    choose = random.Random(seed)  # noqa: S311 - a test that must repeat
    metadata = [("authorization", f"Bearer {token}")] if token else []
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        while time.monotonic() < end:
            data = body(choose)
            method: Any = channel.unary_unary(choose.choice(METHODS))
            try:
                if choose.random() < 0.2:
                    stream: Any = channel.stream_stream(STREAM)
                    for _ in stream(iter([data, data]), metadata=metadata, timeout=10):
                        statuses["answer"] += 1
                else:
                    method(data, metadata=metadata, timeout=10)
                    statuses["OK"] += 1
            except grpc.RpcError as error:
                statuses[error.code().name] += 1


def main() -> None:
    address, seed, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    tokens = [line.strip() for line in sys.stdin]
    end, statuses = time.monotonic() + seconds, Counter[str]()
    threads = [
        threading.Thread(target=attack, args=(address, token, seed + number, end, statuses))
        for number, token in enumerate(tokens)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
