"""Somebody who calls a model at fixed times while others do what they like."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from tests.support.onnx_models import identity
from tests.support.up import Up

INFER = "/inference.GRPCInferenceService/ModelInfer"
PASSWORD = "correct horse battery"
EVERY = 0.02
"""Seconds between two calls."""


async def publish(up: Up, directory: Path) -> tuple[str, str]:
    """Tokens of a bystander, who may call the model, and of a user without any grant."""
    path = directory / "victim.onnx"
    path.write_bytes(identity("FP32").SerializeToString())
    async with up.admin() as plane:
        await plane.artifact.push("victim", path)
        await plane.inference.deploy("victim")
        await plane.auth.create_user("eve", PASSWORD)
        return await plane.auth.access_token(), (await plane.auth.login("eve", PASSWORD)).access_token


async def bystand(address: str, token: str, seconds: float) -> list[float]:
    """How long calls of somebody else took, in seconds, ascending. They are made at fixed times, whatever became of the
    ones before, and measured from those: a stall counts for each call that it held up."""
    request = service_pb2.ModelInferRequest(model_name="victim")
    request.inputs.add(name="x", datatype="FP32", shape=[4])
    request.raw_input_contents.append(bytes(16))
    body, began = request.SerializeToString(), time.monotonic()
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(INFER)

        async def one(at: float) -> float:
            await asyncio.sleep(began + at - time.monotonic())
            await call(body, metadata=[("authorization", f"Bearer {token}")], timeout=30)
            return time.monotonic() - began - at

        return sorted(await asyncio.gather(*(one(number * EVERY) for number in range(int(seconds / EVERY)))))


def p99(taken: list[float]) -> float:
    return taken[int(len(taken) * 0.99)]
