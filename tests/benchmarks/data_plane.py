"""How much the governed way costs: the same ModelInfer bytes to Triton itself and through Inferplane, in one run.

Usage: python tests/benchmarks/data_plane.py [--seconds S] [--lanes L] [--elements N] [--workers W]

Prints calls per second and the ratio, from client processes of its own. The numbers of two runs do not compare: only
the ratio within one does.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tests.support.onnx_models import identity
from tests.support.up import Up, running_up

METHOD = "/inference.GRPCInferenceService/ModelInfer"
CLIENTS = 2


async def drive(address: str, metadata: list[tuple[str, str]], body: bytes, seconds: float, lanes: int) -> list[float]:
    """Latencies in seconds of all calls that `lanes` sequential callers made."""
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary(METHOD)
        await call(body, metadata=metadata)
        end = time.monotonic() + seconds

        async def lane() -> None:
            while (began := time.monotonic()) < end:
                await call(body, metadata=metadata)
                latencies.append(time.monotonic() - began)

        await asyncio.gather(*(lane() for _ in range(lanes)))
    return latencies


def client(arguments: tuple[Any, ...]) -> list[float]:
    return asyncio.run(drive(*arguments))


def measure(address: str, metadata: list[tuple[str, str]], body: bytes, seconds: float, lanes: int) -> str:
    with multiprocessing.get_context("spawn").Pool(CLIENTS) as pool:
        parts = pool.map(client, [(address, metadata, body, seconds, lanes // CLIENTS)] * CLIENTS)
    latencies = sorted(latency for part in parts for latency in part)
    p50, p99 = statistics.median(latencies), latencies[int(len(latencies) * 0.99)]
    return f"{len(latencies) / seconds:8.0f} calls/s   p50 {p50 * 1000:6.2f} ms   p99 {p99 * 1000:6.2f} ms"


async def publish(up: Up, elements: int, directory: Path) -> str:
    async with up.admin() as plane:
        path = directory / "bench.onnx"
        path.write_bytes(identity("FP32", ["n", elements]).SerializeToString())
        await plane.artifact.push("bench", path)
        await plane.inference.deploy("bench")
        return await plane.auth.access_token()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--lanes", type=int, default=16, help="calls in flight")
    parser.add_argument("--elements", type=int, default=64, help="FP32 values per call")
    parser.add_argument("--workers", type=int, default=1, help="inference workers")
    arguments = parser.parse_args()
    request = service_pb2.ModelInferRequest(model_name="bench")
    request.inputs.add(name="x", datatype="FP32", shape=[1, arguments.elements])
    request.raw_input_contents.append(bytes(4 * arguments.elements))
    body = request.SerializeToString()
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_up(Path(scratch), "--workers", str(arguments.workers)) as up,
    ):
        token = asyncio.run(publish(up, arguments.elements, Path(scratch)))
        ways = {
            "Triton itself": (up.endpoints["triton"], [up.triton_header]),
            "through Inferplane": (up.endpoints["inference"], [("authorization", f"Bearer {token}")]),
        }
        for name, (address, metadata) in ways.items():
            outcome = measure(address, metadata, body, arguments.seconds, arguments.lanes)
            sys.stdout.write(f"{name:20s} {outcome}\n")


if __name__ == "__main__":
    main()
