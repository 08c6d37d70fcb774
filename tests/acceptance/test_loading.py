"""A large model is loaded beside the data plane, not in it."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

import numpy as np
import psutil
import pytest

from inferplane.client import Inferplane
from tests.support.onnx_models import identity
from tests.support.serving import constant
from tests.support.up import Up, running_up

MIB = 1 << 20
X = np.arange(4, dtype=np.float32)


@pytest.fixture
def own_up(tmp_path: Path) -> Iterator[Up]:
    with running_up(tmp_path) as up:
        yield up


class Watch:
    """The largest memory of a worker and of the process that loads for it, in bytes, from their beginning."""

    def __init__(self, pid: int) -> None:
        self.worker = psutil.Process(pid)
        self.before = self.worker.memory_info().rss
        self.largest = self.before
        self.children: dict[int, int] = {}

    def look(self) -> None:
        self.largest = max(self.largest, self.worker.memory_info().rss)
        for child in self.worker.children():
            with contextlib.suppress(psutil.NoSuchProcess, OSError, IndexError):
                status = Path(f"/proc/{child.pid}/status").read_text()
                peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
                self.children[child.pid] = max(self.children.get(child.pid, 0), peak)

    @property
    def together(self) -> int:
        return self.largest - self.before + max(self.children.values())


async def call_until(plane: Inferplane, done: asyncio.Event) -> list[float]:
    """Call `echo` one after another; how long each call took, in seconds."""
    took = []
    while not done.is_set():
        began = time.monotonic()
        answer = await plane.inference.predict("echo", {"x": X})
        took.append(time.monotonic() - began)
        assert np.array_equal(answer.outputs["y"], X)
    return took


async def watch_until(watch: Watch, done: asyncio.Event) -> None:
    while not done.is_set():
        watch.look()
        await asyncio.sleep(0.01)


def shown(took: list[float]) -> str:
    cuts = quantiles(took, n=100)
    return f"{len(took)} calls, p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms, max {max(took) * 1e3:.0f} ms"


async def measured_load(up: Up, folder: Path, size: int) -> None:
    async with up.admin() as plane:
        (folder / "echo.onnx").write_bytes(identity("FP32").SerializeToString())
        await plane.artifact.push("echo", folder / "echo.onnx")
        await plane.inference.deploy("echo")
        (folder / "large.onnx").write_bytes(constant(1, padding=size))
        await plane.artifact.push("large", folder / "large.onnx")

        quiet = asyncio.Event()
        calling = asyncio.create_task(call_until(plane, quiet))
        await asyncio.sleep(2)
        quiet.set()
        before = await calling

        watch, done = Watch(up.pids["inference"]), asyncio.Event()
        beside = asyncio.gather(call_until(plane, done), watch_until(watch, done))
        began = time.monotonic()
        await plane.inference.deploy("large", timeout=280)
        seconds = time.monotonic() - began
        done.set()
        during, _ = await beside
    over = watch.together - 2 * size
    print(
        f"{size // MIB} MiB in {seconds:.1f} s; quiet: {shown(before)}; during: {shown(during)}; worker grew by"
        f" {(watch.largest - watch.before) / MIB:.0f} MiB, with the child 2 x size + {over / MIB:.0f} MiB"
    )
    assert watch.worker.is_running()
    assert watch.worker.pid == up.pids["inference"]
    assert over <= 64 * MIB
    assert sorted(during)[int(len(during) * 0.99)] < 0.25
    assert max(during) < 1.0


async def test_a_large_model_costs_twice_its_size_outside_of_the_worker_which_goes_on(
    own_up: Up, tmp_path: Path
) -> None:
    await measured_load(own_up, tmp_path, 100 * MIB)


@pytest.mark.soak
@pytest.mark.parametrize("mebibytes", [800, 1600])
async def test_the_largest_models_too(own_up: Up, tmp_path: Path, mebibytes: int) -> None:
    await measured_load(own_up, tmp_path, mebibytes * MIB)
