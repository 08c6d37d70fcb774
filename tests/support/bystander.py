"""Somebody who calls a model at fixed times while others do what they like."""

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc

from tests.support.load import infer_request
from tests.support.mesh import bearer
from tests.support.onnx_models import identity
from tests.support.paths import INFER
from tests.support.up import Up

MODEL = "victim"
PASSWORD = "correct horse battery"
EVERY = 0.02
"""Seconds between two calls."""


async def publish(up: Up, directory: Path) -> tuple[str, str]:
    """Tokens of a bystander, who may call MODEL, and of the user `eve`, who has no grant yet."""
    path = directory / "victim.onnx"
    path.write_bytes(identity("FP32").SerializeToString())
    async with up.admin() as plane:
        await plane.artifact.push(MODEL, path)
        await plane.inference.deploy(MODEL)
        await plane.auth.create_user("eve", PASSWORD)
        return await plane.auth.access_token(), (await plane.auth.login("eve", PASSWORD)).access_token


async def bystand(address: str, token: str, seconds: float) -> list[float]:
    """How long calls of somebody else took, in seconds, ascending. They are made at fixed times, whatever became of the
    ones before, and measured from those: a stall counts for each call that it held up."""
    body, began = infer_request(MODEL, 16), time.monotonic()
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(INFER)

        async def one(at: float) -> float:
            await asyncio.sleep(began + at - time.monotonic())
            await call(body, metadata=bearer(token), timeout=30)
            return time.monotonic() - began - at

        return sorted(await asyncio.gather(*(one(number * EVERY) for number in range(int(seconds / EVERY)))))


def p99(taken: list[float]) -> float:
    return taken[int(len(taken) * 0.99)]
