"""Several workers per service behave as one service."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from inferplane.client import Inferplane
from tests.support.onnx_models import identity
from tests.support.paths import INFER
from tests.support.up import Up, running_up, wait_for

CALLS = 60


def body() -> bytes:
    request = service_pb2.ModelInferRequest(model_name="echo")
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    request.raw_input_contents.append(bytes(4))
    serialized: bytes = request.SerializeToString()
    return serialized


async def call_anew(address: str, token: str) -> None:
    """One call on a connection of its own, which the kernel gives to one of the workers."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        method: Any = channel.unary_unary(INFER)
        await method(body(), metadata=[("authorization", f"Bearer {token}")], timeout=10)


async def all_answer(address: str, token: str) -> bool:
    """Each worker follows the policy by itself, so one may learn of a deployment a moment later."""
    outcomes = await asyncio.gather(*(call_anew(address, token) for _ in range(10)), return_exceptions=True)
    return not any(outcomes)


async def counted(plane: Inferplane, calls: int) -> None:
    async with asyncio.timeout(10):
        while sum(version.call_count for version in await plane.reporting.metrics("echo")) < calls:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.05)


def pids(up: Up) -> dict[str, int]:
    found: dict[str, int] = json.loads(up.ready_file.read_text())["pids"]
    return found


async def test_a_deployment_is_served_by_all_workers_and_outlives_one(tmp_path: Path) -> None:
    with running_up(tmp_path, "--workers", "2") as up:
        assert {"inference/0", "inference/1", "auth/0", "auth/1"} <= set(up.pids)
        async with up.admin() as plane:
            path = tmp_path / "echo.onnx"
            path.write_bytes(identity("FP32").SerializeToString())
            await plane.artifact.push("echo", path)
            await plane.inference.deploy("echo")
            token = await plane.auth.access_token()
            address = up.endpoints["inference"]
            async with asyncio.timeout(5):
                while not await all_answer(address, token):  # noqa: ASYNC110 - the other side is another process
                    await asyncio.sleep(0.05)
            await asyncio.gather(*(call_anew(address, token) for _ in range(CALLS)))
            await counted(plane, CALLS)
            killed = pids(up)["inference/0"]
            os.kill(killed, signal.SIGKILL)
            await asyncio.to_thread(wait_for, lambda: pids(up).get("inference/0", killed) != killed, 20)
            await asyncio.gather(*(call_anew(address, token) for _ in range(CALLS)))
            await counted(plane, 2 * CALLS)
