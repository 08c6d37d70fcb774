"""What the predictions of one caller do to those of another, in front of a real Triton."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.support.bystander import MODEL, bystand, p99, publish
from tests.support.load import infer_request
from tests.support.mesh import bearer
from tests.support.onnx_models import growing
from tests.support.paths import INFER
from tests.support.up import Up

LARGE = 1_000_000
CALLS = 100
GROWING = "growing"
GROWN = 8_000_000
MOST_CALLS = 128
"""What the window lets in of one caller with small requests."""
SMALL = 16
MEASURED = 300
P99 = 0.25
"""Seconds."""
TRIES = 3
"""Other tests share this machine: one of so many tries must have been left in peace."""


@asynccontextmanager
async def loaded(up: Up, token: str, model: str, does: str, size: int, calls: int) -> AsyncIterator[None]:
    """While as many large calls of one user as may be are under way."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.load", up.endpoints["inference"], model, does, str(size), str(calls)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{token}\n".encode())
        before = int(await process.stdout.readline())
        began = time.monotonic()
        yield
        process.stdin.write_eof()
        answered = int(await process.stdout.readline()) - before
        assert answered > 0
        print(f"beside {answered / (time.monotonic() - began):.0f} large calls a second: ", end="")
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def small_calls(up: Up, token: str) -> float:
    """The p99 of small calls, one after the other, in seconds."""
    body, taken = infer_request(MODEL, SMALL), []
    async with grpc.aio.insecure_channel(up.endpoints["inference"]) as channel:
        call: Any = channel.unary_unary(INFER)
        for _ in range(MEASURED):
            began = time.monotonic()
            await call(body, metadata=bearer(token), timeout=30)
            taken.append(time.monotonic() - began)
    return p99(sorted(taken))


@pytest.fixture(scope="module")
def tokens(up: Up, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of somebody with small calls, and of the user `eve`, who makes large ones. Both may call MODEL and GROWING."""

    async def prepare() -> tuple[str, str]:
        directory = tmp_path_factory.mktemp("models")
        light, heavy = await publish(up, directory)
        path = directory / "growing.onnx"
        path.write_bytes(growing().SerializeToString())
        async with up.admin() as plane:
            await plane.artifact.push(GROWING, path)
            await plane.inference.deploy(GROWING)
            for model in (MODEL, GROWING):
                await plane.auth.grant("caller", to="eve", on=model)
        return light, heavy

    return asyncio.run(prepare())


@pytest.mark.timeout(300)
async def test_a_hundred_large_calls_of_one_user_do_not_hold_up_the_small_ones_of_another(
    up: Up, tokens: tuple[str, str]
) -> None:
    light, heavy = tokens
    alone = await small_calls(up, light)
    beside: list[float] = []
    while len(beside) < TRIES and min(beside, default=P99) >= P99:
        async with loaded(up, heavy, MODEL, "sends", LARGE, CALLS):
            beside.append(await small_calls(up, light))
        print(f"p99 {beside[-1] * 1000:.0f} ms, alone {alone * 1000:.0f} ms")
    assert min(beside) < P99, beside


@pytest.mark.timeout(300)
async def test_large_answers_to_small_requests_of_one_user_do_not_hold_up_others_and_no_worker_is_replaced(
    up: Up, tokens: tuple[str, str]
) -> None:
    light, heavy = tokens
    pids, beside = up.pids, list[float]()
    while len(beside) < TRIES and min(beside, default=P99) >= P99:
        async with loaded(up, heavy, GROWING, "asks", GROWN, MOST_CALLS):
            beside.append(p99(await bystand(up.endpoints["inference"], light, 6)))
        print(f"p99 {beside[-1] * 1000:.0f} ms")
    up.refresh()
    assert up.pids == pids
    assert min(beside) < P99, beside
