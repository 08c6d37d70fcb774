"""Whatever bytes a caller sends, with a grant, without one or without a token: the others are served as ever."""

import asyncio
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from tests.support.onnx_models import identity
from tests.support.up import Up, running_up

INFER = "/inference.GRPCInferenceService/ModelInfer"
PASSWORD = "correct horse battery"
P99 = 0.25
"""Seconds. In the short form one stall of 0.4 s is enough to pass it."""
EVERY = 0.02
"""Seconds between two calls of the bystander."""
TRIES = 3
"""Other tests share this machine: one of so many tries must have been left in peace."""


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


async def attacked(seconds: float, seed: int) -> float:
    """The p99 of a bystander's calls, in seconds. Fails if one of them does, or a worker is replaced."""
    with TemporaryDirectory(prefix="inferplane-") as directory, running_up(Path(directory)) as up:
        token, eve = await publish(up, Path(directory))
        pids = dict(up.pids)
        address = up.endpoints["inference"]
        undisturbed = await bystand(address, token, 3)
        attacker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.hostile", address, str(seed), str(seconds)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        # The bystander's own token too: an attacker may have the very grant that the victim has.
        attacking = asyncio.create_task(attacker.communicate(f"{token}\n{eve}\n\n".encode()))
        taken = await bystand(address, token, seconds)
        output, _ = await attacking
        statuses = json.loads(output)
        assert sum(statuses.values()) > 10
        assert statuses["UNAUTHENTICATED"]
        assert "INTERNAL" not in statuses
        assert "UNKNOWN" not in statuses
        up.refresh()
        assert up.pids == pids
        print(
            f"{sum(statuses.values())} hostile calls: p99 of {len(taken)} others {p99(taken) * 1000:.0f} ms, longest"
            f" {taken[-1] * 1000:.0f} ms; before {p99(undisturbed) * 1000:.0f} and {undisturbed[-1] * 1000:.0f} ms"
        )
        return p99(taken)


@pytest.mark.timeout(400)
async def test_under_hostile_bytes_the_p99_of_others_is_below_250_ms_and_no_worker_is_replaced() -> None:
    seen: list[float] = []
    while len(seen) < TRIES and min(seen, default=P99) >= P99:
        seen.append(await attacked(seconds=12, seed=1 + len(seen)))
    assert min(seen) < P99, seen


@pytest.mark.soak
async def test_five_minutes_of_hostile_bytes() -> None:
    assert await attacked(seconds=300, seed=7) < P99
