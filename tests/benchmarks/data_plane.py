"""What governance costs: the same ModelInfer bytes to Triton, through a bare pass-through and through Inferplane.

Usage: python -m tests.benchmarks.data_plane [--seconds S] [--in-flight N] [--elements N] [--rounds N] [--workers W]

The bare pass-through runs once by gRPC's own defaults, as anybody's would, and once as workers do (decision 0034).
All take turns, and the ratio of each round is what counts: the numbers of two runs do not compare. The load comes
from h2load (Debian: nghttp2-client) where it is installed, else from two Python processes, which take so much of the
machine themselves that the ratios flatter.
"""

import argparse
import asyncio
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from inferplane.server.processes.grpc_environment import GRPC_ENVIRONMENT
from tests.support.onnx_models import identity
from tests.support.paths import INFER
from tests.support.up import Up, running_up

CLIENTS = 4
YARDSTICK = "bare pass-through"
Metadata = list[tuple[str, str]]
Load = Callable[[str, Metadata], float]


async def drive(address: str, metadata: Metadata, body: bytes, seconds: float, lanes: int) -> int:
    """How many calls `lanes` sequential callers made."""
    count = 0
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary(INFER)
        end = time.monotonic() + seconds

        async def lane() -> None:
            nonlocal count
            while time.monotonic() < end:
                await call(body, metadata=metadata)
                count += 1

        await asyncio.gather(*(lane() for _ in range(lanes)))
    return count


def client(arguments: tuple[Any, ...]) -> int:
    return asyncio.run(drive(*arguments))


def python_load(body: bytes, seconds: float, in_flight: int) -> Load:
    def run(address: str, metadata: Metadata) -> float:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            counts = pool.map(client, [(address, metadata, body, seconds, in_flight // 2)] * 2)
        return sum(counts) / seconds

    return run


def h2load(body_file: Path, seconds: float, in_flight: int) -> Load:
    def run(address: str, metadata: Metadata) -> float:
        headers = [word for name, value in metadata for word in ("-H", f"{name}: {value}")]
        command = [
            *("h2load", "-D", str(int(seconds)), "-c", str(CLIENTS), "-m", str(max(1, in_flight // CLIENTS))),
            *("-d", str(body_file), "-H", "content-type: application/grpc", "-H", "te: trailers", *headers),
            f"http://{address}{INFER}",
        ]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r"finished in [^,]+, ([0-9.]+) req/s", output)
        assert found is not None, output
        return float(found[1])

    return run


@contextmanager
def pass_through(up: Up, environment: Mapping[str, str]) -> Iterator[str]:
    """A bare pass-through, with `environment` beside the process's own."""
    command = [sys.executable, "-m", "tests.benchmarks.pass_through", up.endpoints["triton"], *up.triton_header]
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def check(address: str, metadata: Metadata, body: bytes) -> None:
    """h2load counts answers with an error as answers: one real call must succeed first."""
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(INFER)
        call(body, metadata=metadata, timeout=10)


async def publish(up: Up, elements: int, directory: Path) -> str:
    async with up.admin() as plane:
        path = directory / "bench.onnx"
        path.write_bytes(identity("FP32", ["n", elements]).SerializeToString())
        await plane.artifact.push("bench", path)
        await plane.inference.deploy("bench")
        return await plane.auth.access_token()


def report(rates: dict[str, list[float]]) -> None:
    yardstick = rates[YARDSTICK]
    for name, each in rates.items():
        ratios = [rate / bare for rate, bare in zip(each, yardstick, strict=True)]
        sys.stdout.write(
            f"{name:20s} {statistics.median(each):8.0f} calls/s   "
            f"{statistics.median(ratios):5.2f} x bare pass-through ({min(ratios):.2f} to {max(ratios):.2f})\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="of load, each way and round")
    parser.add_argument("--in-flight", type=int, default=32, help="calls in flight")
    parser.add_argument("--elements", type=int, default=4, help="FP32 values a call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="inference workers")
    arguments = parser.parse_args()
    request = service_pb2.ModelInferRequest(model_name="bench")
    request.inputs.add(name="x", datatype="FP32", shape=[1, arguments.elements])
    request.raw_input_contents.append(bytes(4 * arguments.elements))
    body: bytes = request.SerializeToString()
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_up(Path(scratch), "--workers", str(arguments.workers)) as up,
        pass_through(up, {}) as bare,
        pass_through(up, GRPC_ENVIRONMENT) as tuned,
    ):
        token = asyncio.run(publish(up, arguments.elements, Path(scratch)))
        if shutil.which("h2load"):
            body_file = Path(scratch, "body")
            body_file.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
            load = h2load(body_file, arguments.seconds, arguments.in_flight)
        else:
            load = python_load(body, arguments.seconds, arguments.in_flight)
        ways: dict[str, tuple[str, Metadata]] = {
            "Triton itself": (up.endpoints["triton"], [up.triton_header]),
            YARDSTICK: (bare, []),
            "bare, run as workers": (tuned, []),
            "through Inferplane": (up.endpoints["inference"], [("authorization", f"Bearer {token}")]),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(arguments.rounds):
            for name, (address, metadata) in ways.items():
                check(address, metadata, body)
                rates[name].append(load(address, metadata))
                sys.stderr.write(f"round {number + 1}: {name} {rates[name][-1]:.0f} calls/s\n")
        report(rates)


if __name__ == "__main__":
    main()
