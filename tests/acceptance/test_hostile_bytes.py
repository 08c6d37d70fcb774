"""Whatever bytes a caller sends, with a grant, without one or without a token: the others are served as ever."""

import asyncio
import json
import subprocess
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


async def publish(up: Up, directory: Path) -> tuple[str, str]:
    """Tokens of a bystander, who may call the model, and of a user without any grant."""
    path = directory / "victim.onnx"
    path.write_bytes(identity("FP32").SerializeToString())
    async with up.admin() as plane:
        await plane.artifact.push("victim", path)
        await plane.inference.deploy("victim")
        await plane.auth.create_user("eve", PASSWORD)
        return await plane.auth.access_token(), (await plane.auth.login("eve", PASSWORD)).access_token


def bystand(address: str, token: str, seconds: float) -> list[float]:
    """How long each call of somebody else took, in seconds, one after the other."""
    request = service_pb2.ModelInferRequest(model_name="victim")
    request.inputs.add(name="x", datatype="FP32", shape=[4])
    request.raw_input_contents.append(bytes(16))
    body, taken = request.SerializeToString(), []
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(INFER)
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            call(body, metadata=[("authorization", f"Bearer {token}")], timeout=30)
            taken.append(time.monotonic() - began)
            time.sleep(0.005)
    return sorted(taken)


def attacked(seconds: float, seed: int) -> None:
    with TemporaryDirectory(prefix="inferplane-") as directory, running_up(Path(directory)) as up:
        token, eve = asyncio.run(publish(up, Path(directory)))
        pids = dict(up.pids)
        address = up.endpoints["inference"]
        command = [sys.executable, "-m", "tests.support.hostile", address, str(seed), str(seconds)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as attacker:
            assert attacker.stdin is not None
            # The bystander's own token too: an attacker may have the very grant that the victim has.
            attacker.stdin.write(f"{token}\n{eve}\n\n")
            attacker.stdin.close()
            taken = bystand(address, token, seconds)
            assert attacker.stdout is not None
            statuses = json.loads(attacker.stdout.read())
        assert sum(statuses.values()) > 10
        assert "INTERNAL" not in statuses
        assert "UNKNOWN" not in statuses
        assert taken[int(len(taken) * 0.99)] < P99, f"p99 of {len(taken)} calls among {statuses}"
        up.refresh()
        assert up.pids == pids


def test_hostile_bytes_do_not_slow_others_down_nor_kill_a_worker() -> None:
    attacked(seconds=10, seed=1)


@pytest.mark.soak
def test_five_minutes_of_hostile_bytes() -> None:
    attacked(seconds=300, seed=2)
