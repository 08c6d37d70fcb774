"""Writes that go on while services are killed, and what must be true afterwards."""

import asyncio
import json
import os
import random
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

from inferplane.client import Inferplane
from inferplane.client.errors import InferplaneClientError
from tests.support.onnx_models import model, tensor
from tests.support.up import SERVING, Up, wait_for

LARGE = 5_000_000
"""FP32 values; their 20 MB are more than one chunk."""


@dataclass
class Acknowledged:
    """What the services said was done, and the reasons of what failed."""

    users: list[str] = field(default_factory=list)
    versions: list[tuple[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def model_of(values: int, seed: int) -> bytes:
    """A model with that many random constants."""
    constants = np.random.default_rng(seed).random(values, dtype=np.float32)
    node = helper.make_node("Add", ["x", "c"], ["y"])
    shape = [values]
    built = model(
        [node], [tensor("x", "FP32", shape)], [tensor("y", "FP32", shape)], [numpy_helper.from_array(constants, "c")]
    )
    serialized: bytes = built.SerializeToString()
    return serialized


async def write_until(done: asyncio.Event, plane: Inferplane, directory: Path) -> Acknowledged:
    """Create users and push models, large and small in turn, until `done` and some more are acknowledged."""
    acknowledged, number, enough = Acknowledged(), 0, 0
    while not done.is_set() or len(acknowledged.versions) < enough:
        enough = enough if done.is_set() else len(acknowledged.versions) + 2
        name = f"name-{number}"
        path = directory / f"{name}.onnx"
        path.write_bytes(await asyncio.to_thread(model_of, LARGE if number % 3 == 0 else 10, number))
        try:
            await plane.auth.create_user(name, "correct horse battery")
            acknowledged.users.append(f"users/{name}")
            version = await plane.artifact.push(name, path)
            acknowledged.versions.append((name, version.digest))
        except InferplaneClientError as error:
            acknowledged.failures.append(error.reason)
        path.unlink()
        number += 1
    return acknowledged


async def kill_each(up: Up, victims: Iterable[str], rng: random.Random) -> None:
    """Kill each victim at a random instant, and wait until it serves again."""
    for victim in victims:
        await asyncio.sleep(rng.uniform(0.05, 1.0))
        pid = json.loads(up.ready_file.read_text())["pids"][victim]
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(wait_for, partial(serves_again, up, victim, pid), 20)


def serves_again(up: Up, victim: str, killed: int) -> bool:
    """Whether another process has taken the place of the killed one."""
    pids = json.loads(up.ready_file.read_text())["pids"]
    return pids.get(victim, killed) != killed and up.status(victim, "") == SERVING


async def survive(up: Up, directory: Path, victims: Iterable[str], seed: int) -> Acknowledged:
    """Write while `victims` are killed; then check that all acknowledged is there, and nothing half."""
    done = asyncio.Event()
    async with up.admin() as plane:
        writing = asyncio.create_task(write_until(done, plane, directory))
        await kill_each(up, victims, random.Random(seed))  # noqa: S311 - when to kill is no secret
        done.set()
        acknowledged = await writing
        assert acknowledged.versions
        assert "INTERNAL" not in acknowledged.failures
        assert set(acknowledged.users) <= {user.name async for user in plane.auth.list_users()}
        for name, digest in acknowledged.versions:
            assert (await plane.artifact.get_version(name)).digest == digest
        await every_version_is_whole(plane, directory / "back.onnx")
    return acknowledged


async def every_version_is_whole(plane: Inferplane, path: Path) -> None:
    """Download all versions there are; the client checks each digest."""
    async for listed in plane.artifact.list_models():
        name = listed.name.removeprefix("models/")
        async for version in plane.artifact.list_versions(name):
            await plane.artifact.download(f"{name}:{version.name.rpartition('/')[2]}", path)
