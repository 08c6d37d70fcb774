"""Background tasks that end although they should not."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from inferplane.server import tasks as module
from inferplane.server.auth.turns import Turns
from inferplane.server.tasks import ContainedError, Tasks, start_task


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def tasks(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tasks]:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    tasks = Tasks(registry)
    yield tasks
    await tasks.stop()


class Unknown(BaseException):
    """Derived as no library should."""


@pytest.mark.parametrize(
    "end", [ValueError("x"), asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt(), Unknown(), None], ids=repr
)
async def test_a_task_that_ends_is_logged_counted_and_started_again(
    tasks: Tasks, registry: CollectorRegistry, end: BaseException | None
) -> None:
    runs = 0
    again = asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            if end is not None:
                raise end
            return
        again.set()
        await asyncio.Event().wait()

    with capture_logs() as said:
        tasks.start("work", work)
        async with asyncio.timeout(10):
            await again.wait()
    assert [line["event"] for line in said] == [
        "background_task_failed" if end is not None else "background_task_returned"
    ]
    assert said[0]["task"] == "work"
    assert value(registry, "restarts_total") == 1
    assert value(registry, "running") == 1


async def test_a_task_that_waits_to_be_started_again_does_not_count_as_running(
    tasks: Tasks, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 3600.0)

    async def work() -> None:
        raise ValueError

    tasks.start("work", work)
    async with asyncio.timeout(10):
        while value(registry, "restarts_total") != 1:  # noqa: ASYNC110 - the metric is what is tested
            await asyncio.sleep(0)
    assert value(registry, "running") == 0


async def test_stopping_ends_tasks_that_run_wait_or_clean_up(registry: CollectorRegistry) -> None:
    tasks = Tasks(registry)
    ended = []

    async def runs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("runs")

    async def fails() -> None:
        raise ValueError

    started = [("runs", runs), ("fails", fails)]
    for name, work in started:
        tasks.start(name, work)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await tasks.stop()
    assert ended == ["runs"]
    assert value(registry, "running", "runs") == 0


async def test_a_timeout_inside_the_work_is_no_cancellation_of_the_task(
    tasks: Tasks, registry: CollectorRegistry
) -> None:
    again = asyncio.Event()

    async def work() -> None:
        if value(registry, "restarts_total"):
            again.set()
            await asyncio.Event().wait()
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    tasks.start("work", work)
    async with asyncio.timeout(10):
        await again.wait()


async def test_repeated_work_that_fails_is_repeated(tasks: Tasks, registry: CollectorRegistry) -> None:
    twice: asyncio.Event = asyncio.Event()
    runs: list[Any] = []

    async def work() -> None:
        runs.append(None)
        if len(runs) == 1:
            raise ValueError
        twice.set()

    tasks.every(0, "work", work)
    async with asyncio.timeout(10):
        await twice.wait()
    assert value(registry, "restarts_total") == 1


async def test_repeated_work_is_done_soon_after_the_start_however_seldom_it_is_repeated(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_ROUND", 0.0, raising=False)
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    tasks.every(3600.0, "work", work)
    async with asyncio.timeout(10):
        await done.wait()


def value(registry: CollectorRegistry, metric: str, task: str = "work") -> float | None:
    return registry.get_sample_value(f"inferplane_background_task_{metric}", {"task": task})


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_what_would_end_the_process_fails_a_task_alone(end: BaseException) -> None:
    async def work() -> None:
        raise end

    with pytest.raises(ContainedError):
        await start_task(work())


async def test_a_task_that_is_cancelled_before_its_first_step_leaves_no_warning() -> None:
    async def work() -> None:
        raise AssertionError

    task = start_task(work())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_an_evaluation_that_would_end_the_process_fails_its_call_alone(end: BaseException) -> None:
    def evaluate() -> None:
        raise end

    with pytest.raises(ContainedError):
        await Turns().take("device", "alice", "ipv4:192.0.2.1", lambda: asyncio.to_thread(evaluate))
    assert await Turns().take("device", "alice", "ipv4:192.0.2.1", lambda: asyncio.to_thread(lambda: 1)) == 1
