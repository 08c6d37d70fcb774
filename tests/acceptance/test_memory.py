"""What callers can make real processes hold: not more than is said here, whatever they send or do not read."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2

from inferplane.server.rpc.intake import arrivals
from inferplane.server.settings import Settings
from tests.support.http2 import RawConnection, raw_connection
from tests.support.load import growth_request
from tests.support.memory import growth
from tests.support.mesh import error_info
from tests.support.onnx_models import growing, identity
from tests.support.paths import HEALTH, INFER, REFLECTION, STREAM, WHO
from tests.support.up import Up, running_up

MIB = 1 << 20
PASSWORD = "correct horse battery"
SECONDS = 6.0
"""How long bodies are poured: longer than one of a public method may take."""
EACH = 64 << 10
"""Bytes of one request and of its answer."""
LITTLE = 64 * MIB
"""What a process may take to turn such calls away."""
PUBLIC = arrivals.PUBLIC_BUDGET + 96 * MIB
"""The same where the method is for everybody: what its bodies may hold, and what comes before that is noticed."""


@pytest.fixture(scope="module")
def flooded() -> Iterator[Up]:
    """A mesh that nothing else is measured on."""
    with TemporaryDirectory(prefix="inferplane-") as directory, running_up(Path(directory)) as up:
        yield up


@pytest.fixture
def own_up(tmp_path: Path) -> Iterator[Up]:
    with running_up(tmp_path) as up:
        yield up


async def pour(
    connection: RawConnection, path: str, size: int, until: float, metadata: Sequence[tuple[str, str]] = ()
) -> None:
    """Send bodies that say they have `size` bytes, and have all but one of them, again whenever the call is ended."""
    body = b"\0" + size.to_bytes(4, "big") + bytes(size - 1)
    while time.monotonic() < until:
        stream = await connection.open(path, metadata)
        if await connection.send(stream, body):
            while stream not in connection.ended and time.monotonic() < until:  # noqa: ASYNC110 - the server ends it
                await asyncio.sleep(0.01)


async def poured(address: str, path: str, streams: int, size: int, metadata: Sequence[tuple[str, str]] = ()) -> int:
    """How many bytes were taken of bodies on one connection, or the next where the server hangs up."""
    end, taken = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        async with raw_connection(address) as connection:
            pouring = [asyncio.create_task(pour(connection, path, size, end, metadata)) for _ in range(streams)]
            closing = asyncio.create_task(connection.closed.wait())
            await asyncio.wait([closing], timeout=end - time.monotonic())
            for task in (*pouring, closing):
                task.cancel()
            await asyncio.gather(*pouring, closing, return_exceptions=True)
            taken += sum(connection.sent.values())
    return taken


@pytest.mark.parametrize(
    ("service", "path", "streams", "size", "most"),
    [
        ("inference", INFER, 20, 60 * MIB, LITTLE),
        ("inference", INFER, 20, 31 * MIB, LITTLE),
        ("inference", HEALTH, 20, 31 * MIB, PUBLIC),
        ("auth", WHO, 300, 3 * MIB, LITTLE),
        ("auth", "/inferplane.auth.v1.AuthService/Login", 300, 3 * MIB, PUBLIC),
        ("inference", REFLECTION, 20, 31 * MIB, PUBLIC),
        ("auth", REFLECTION, 300, 3 * MIB, PUBLIC),
    ],
)
async def test_anonymous_bodies_without_end_hold_little(
    flooded: Up, service: str, path: str, streams: int, size: int, most: int
) -> None:
    pid = flooded.pids[service]
    grown = growth(pid)
    taken = await poured(flooded.endpoints[service], path, streams, size)
    highest = grown()
    print(f"{service} {path}: {highest / MIB:.0f} MiB more at most, {taken / MIB:.0f} MiB taken")
    assert highest < most
    flooded.refresh()
    assert flooded.pids[service] == pid


async def test_messages_without_end_of_a_known_caller_hold_no_more_than_the_budget_and_end_no_others(
    flooded: Up,
) -> None:
    budget = Settings().slow_body_budget
    async with flooded.admin() as plane:
        metadata = [("authorization", f"Bearer {await plane.auth.access_token()}")]
        await plane.auth.create_user("patient", PASSWORD)
        await plane.auth.grant("caller", to="patient", on="*")
        patient = [("authorization", f"Bearer {(await plane.auth.login('patient', PASSWORD)).access_token}")]
    pid = flooded.pids["inference"]
    grown = growth(pid)
    async with raw_connection(flooded.endpoints["inference"]) as bystander:
        idle = [await bystander.open(STREAM, patient) for _ in range(60)]
        # One of them has sent a part of a message, too.
        await bystander.send(idle[0], b"\0" + (4 * MIB).to_bytes(4, "big") + bytes(2 * MIB))
        taken = await poured(flooded.endpoints["inference"], STREAM, 40, 31 * MIB, metadata)
        highest = grown()
        assert not bystander.ended & set(idle), "streams of somebody who only waits were ended"
    print(f"{highest / MIB:.0f} MiB more at most, {taken / MIB:.0f} MiB taken")
    assert taken > budget
    assert highest < budget + 160 * MIB
    flooded.refresh()
    assert flooded.pids["inference"] == pid


async def publish(up: Up, directory: Path) -> list[tuple[str, str]]:
    """Metadata of a caller of a model that gives back what it gets."""
    path = directory / "echo.onnx"
    path.write_bytes(identity("FP32").SerializeToString())
    async with up.admin() as plane:
        await plane.artifact.push("echo", path)
        await plane.inference.deploy("echo")
        return [("authorization", f"Bearer {await plane.auth.access_token()}")]


def framed(values: int) -> bytes:
    """A request of so many FP32 values, as it goes over the wire."""
    request = service_pb2.ModelInferRequest(model_name="echo")
    request.inputs.add(name="x", datatype="FP32", shape=[values])
    request.raw_input_contents.append(np.zeros(values, dtype=np.float32).tobytes())
    body: bytes = request.SerializeToString()
    return b"\0" + len(body).to_bytes(4, "big") + body


async def send_until_stuck(connection: RawConnection, metadata: list[tuple[str, str]], count: int) -> int:
    """Send requests on one stream and read no answer; how many went before nothing did for two seconds."""
    stream = await connection.open(STREAM, metadata)
    request = framed(EACH // 4)

    async def send() -> None:
        for _ in range(count):
            await connection.send(stream, request)

    sending = asyncio.create_task(send())
    sent = -1
    while sent < connection.sent[stream] and not sending.done():
        sent = connection.sent[stream]
        await asyncio.wait([sending], timeout=2)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    return sent // len(request)


@pytest.mark.parametrize("streams", [1, 20])
async def test_answers_of_streams_that_nobody_reads_hold_little(own_up: Up, tmp_path: Path, streams: int) -> None:
    """20,000 requests of 64 KiB, whose answers once filled Triton with 2.6 GiB."""
    metadata = await publish(own_up, tmp_path)
    own_up.refresh()
    processes = [own_up.pids["inference"], own_up.pids["triton"]]
    processes += [child.pid for child in psutil.Process(own_up.pids["triton"]).children()]
    grown = {f"{psutil.Process(pid).name()} {pid}": growth(pid) for pid in processes}
    async with raw_connection(own_up.endpoints["inference"]) as connection:
        connection.reads_answers = False
        sent = await asyncio.gather(
            *(send_until_stuck(connection, metadata, 20_000 // streams) for _ in range(streams))
        )
        most = {name: grew() for name, grew in grown.items()}
    print(f"{sum(sent)} requests taken; MiB more at most: { {name: grew // MIB for name, grew in most.items()} }")
    assert max(most.values()) < LITTLE, most


@pytest.fixture(scope="module")
def growing_up() -> Iterator[Up]:
    """A mesh with a model that answers as much as it is asked for."""
    with TemporaryDirectory(prefix="inferplane-") as directory, running_up(Path(directory)) as up:
        path = Path(directory) / "growing.onnx"
        path.write_bytes(growing().SerializeToString())

        async def deploy() -> None:
            async with up.admin() as plane:
                await plane.artifact.push("growing", path)
                await plane.inference.deploy("growing")

        asyncio.run(deploy())
        yield up


@pytest.mark.parametrize(("size", "lanes"), [(28_000_000, 128), (60_000_000, 16)], ids=["read", "refused"])
async def test_answers_that_one_caller_asks_for_fill_little_of_triton(growing_up: Up, size: int, lanes: int) -> None:
    """Requests of four bytes, whose answers once filled it with 3 to 12 GiB."""
    async with growing_up.admin() as plane:
        metadata = [("authorization", f"Bearer {await plane.auth.access_token()}")]
    growing_up.refresh()
    grown, body, end = growth(growing_up.pids["triton"]), growth_request("growing", size), time.monotonic() + SECONDS
    codes: Counter[str] = Counter()
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(growing_up.endpoints["inference"], options=options) as channel:
        call: Any = channel.unary_unary(INFER)

        async def ask() -> None:
            while time.monotonic() < end:
                try:
                    await call(body, metadata=metadata, timeout=30)
                    codes["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    codes[error_info(error).reason] += 1
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(ask() for _ in range(lanes)))
    print(f"{grown() // MIB} MiB more at most; {dict(codes)}")
    assert codes["OK" if size < Settings().max_tensor_message_size else "MESSAGE_TOO_LARGE"] > lanes // 2
    assert grown() < 2048 * MIB


@pytest.mark.parametrize(("size", "least", "most"), [(28_000_000, 0.04, 0.12), (200_000, 0.001, 0.01)])
async def test_calls_that_are_cancelled_while_their_answers_are_made_leave_triton_as_it_was(
    growing_up: Up, size: int, least: float, most: float
) -> None:
    """It kept the answer of each tenth of the large ones, and ended after some thousand of the small."""
    caller = f"hasty{size}"
    async with growing_up.admin() as plane:
        await plane.auth.create_user(caller, PASSWORD)
        await plane.auth.grant("caller", to=caller, on="growing")
        metadata = [("authorization", f"Bearer {(await plane.auth.login(caller, PASSWORD)).access_token}")]
    growing_up.refresh()
    pid = growing_up.pids["triton"]
    body, options = growth_request("growing", size), [("grpc.max_receive_message_length", -1)]
    outcomes: Counter[str] = Counter()
    chance = Random(1)  # noqa: S311 - no secret
    async with grpc.aio.insecure_channel(growing_up.endpoints["inference"], options=options) as channel:
        call: Any = channel.unary_unary(INFER)

        async def ask(end: float) -> None:
            while time.monotonic() < end:
                try:
                    await asyncio.wait_for(call(body, metadata=metadata, timeout=30), chance.uniform(least, most))
                    outcomes["answered"] += 1
                except TimeoutError:
                    outcomes["cancelled"] += 1

        # It keeps the memory that so many calls at once need, and uses it again.
        await asyncio.gather(*(ask(time.monotonic() + SECONDS / 2) for _ in range(8)))
        grown = growth(pid)
        await asyncio.gather(*(ask(time.monotonic() + SECONDS) for _ in range(8)))
    print(f"{grown() // MIB} MiB more at most; {dict(outcomes)}")
    growing_up.refresh()
    assert growing_up.pids["triton"] == pid
    assert outcomes["cancelled"] > 100
    assert grown() < 200 * MIB
