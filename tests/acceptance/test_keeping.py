"""What gRPC keeps beside bytes that nobody has read, all that it received together with them: whoever makes a worker
keep more than the budget for what arrives slowly loses his connections, and nobody else loses anything."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.frames import PREFACE, SETTINGS, frame
from tests.support.http2 import RawConnection, raw_connection
from tests.support.memory import growth
from tests.support.paths import HEALTH, INFER, REFLECTION, STREAM
from tests.support.up import Up, running_up

MIB = 1 << 20
BUDGET = 128 * MIB
BEYOND = 128 * MIB
"""What comes before a look sees it, and until what was closed is free."""
SECONDS = 6.0
LONGEST = 30.0
"""Seconds, where the machine is so busy that nothing is closed in SECONDS."""
PASSWORD = "correct horse battery"
SMALL = bytes(24)
"""The least of which gRPC keeps what it was received with."""
PIECE = 8 << 10
"""Bytes between two of these: what gRPC reads at once at least."""
WHOLE = b"\0" + (MIB - 100).to_bytes(4, "big") + bytes(MIB - 100)
ENDLESS = b"\0" + (31 * MIB).to_bytes(4, "big") + SMALL
REFLECTED = b"\0" + (2).to_bytes(4, "big") + b"\x3a\x00"
"""A question whose answer nobody reads."""
BEGINNINGS = {
    "unknown frames": b"",
    "headers without end": frame(1, b"\0\3abc\x7f\x81\xfe\xff\xff\x7f", stream=1),
}
"""How they begin, if they must. No flow control holds them back."""
FLOODS = {
    "unknown frames": frame(0xFA, bytes(16 << 10)) * 16,
    "headers without end": frame(9, bytes(16 << 10), stream=1) * 16,
}
CALLS = 900
REFUSED, HELD = 100 << 10, 130 << 10
"""Bytes that one of them may take, refused or not."""
AT_ONCE = 40
FLOODED = 1024 * MIB
"""What is being read at once is gRPC's to bound; it is more the more send it."""
Metadata = Sequence[tuple[str, str]]


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    environment = {"INFERPLANE_SLOW_BODY_BUDGET": str(BUDGET)}
    with (
        TemporaryDirectory(prefix="inferplane-") as directory,
        running_up(Path(directory), environment=environment) as started,
    ):
        yield started


async def user(up: Up, name: str) -> Metadata:
    """Metadata of somebody who may call every model."""
    async with up.admin() as plane:
        await plane.auth.create_user(name, PASSWORD)
        await plane.auth.grant("caller", to=name, on="*")
        return [("authorization", f"Bearer {(await plane.auth.login(name, PASSWORD)).access_token}")]


@asynccontextmanager
async def bystander(address: str, metadata: Metadata) -> AsyncIterator[None]:
    """Somebody who waits by a stream, and has sent a part of a body: that both go on is asserted."""
    async with raw_connection(address) as connection:
        waiting = await connection.open(STREAM, metadata)
        body = await connection.open(INFER, metadata)
        await connection.send(body, ENDLESS[:5] + bytes(2 * MIB))
        yield
        assert not connection.closed.is_set()
        assert not connection.ended & {waiting, body}, connection.trailers


async def keep(connection: RawConnection, carrier: str, keepers: Sequence[int], metadata: Metadata) -> None:
    """Send whole messages by `carrier`, and between their pieces a few bytes of each of the `keepers` in turn."""
    turn = 0
    while True:
        stream = await connection.open(carrier, metadata)
        for start in range(0, len(WHOLE), PIECE):
            await connection.send(stream, WHOLE[start : start + PIECE])
            await connection.send(keepers[turn % len(keepers)], SMALL)
            turn += 1
        await connection.send(stream, b"", last=True)


async def unread(connection: RawConnection, _metadata: Metadata) -> list[int]:
    """Streams of a stranger who does not read what he asked for, so that they are not read either."""
    streams = [await connection.open(REFLECTION) for _ in range(60)]
    for stream in streams:
        await connection.send(stream, REFLECTED * 20)
    return streams


async def endless(connection: RawConnection, metadata: Metadata) -> list[int]:
    """Bodies of which the least is there."""
    streams = [await connection.open(INFER, metadata) for _ in range(8)]
    for stream in streams:
        await connection.send(stream, ENDLESS)
    return streams


async def sent_of(work: "asyncio.Task[None]", connection: RawConnection, seconds: float) -> int:
    """Bytes that went until the server hung up, or for so many seconds."""
    closing = asyncio.ensure_future(connection.closed.wait())
    await asyncio.wait([work, closing], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in (work, closing):
        task.cancel()
    await asyncio.gather(work, closing, return_exceptions=True)
    return sum(connection.sent.values())


@pytest.mark.parametrize("known", [True, False], ids=["a known caller's bodies", "a stranger's unread streams"])
async def test_what_small_frames_keep_is_bounded_and_its_sender_alone_loses_connections(up: Up, known: bool) -> None:
    waiting, pouring = await user(up, f"waiting{known:d}"), await user(up, f"pouring{known:d}")
    address, pid = up.endpoints["inference"], up.pids["inference"]
    grown = growth(pid)
    sent, connections, end = 0, 0, time.monotonic() + SECONDS
    async with bystander(address, waiting):
        while time.monotonic() < end:
            connections += 1
            metadata = pouring if known else []
            async with raw_connection(address, window=None if known else 0) as connection:
                with suppress(ConnectionError):
                    keepers = await (endless if known else unread)(connection, metadata)
                    work = asyncio.create_task(keep(connection, STREAM if known else HEALTH, keepers, metadata))
                    sent += await sent_of(work, connection, end - time.monotonic())
    print(f"{grown() / MIB:.0f} MiB more at most, {sent / MIB:.0f} MiB sent by {connections} connections")
    assert connections > 1
    assert sent > BUDGET + BEYOND
    assert grown() < BUDGET + BEYOND
    up.refresh()
    assert up.pids["inference"] == pid


async def flood(host: str, port: int, kind: str, is_over: Callable[[], bool]) -> int:
    """Send on one connection until the server hangs up, or it is over; how many bytes went."""
    reader, writer = await asyncio.open_connection(host, port)
    sent = 0
    try:
        writer.write(PREFACE + SETTINGS + BEGINNINGS[kind])
        while not is_over() and not reader.at_eof():
            writer.write(FLOODS[kind])
            await writer.drain()
            sent += len(FLOODS[kind])
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()
    return sent


@pytest.mark.parametrize("kind", FLOODS)
async def test_who_floods_with_what_belongs_to_no_call_loses_connections_and_nobody_else_does(
    up: Up, kind: str
) -> None:
    waiting = await user(up, kind.replace(" ", "-"))
    address, pid = up.endpoints["inference"], up.pids["inference"]
    host, _, port = address.rpartition(":")
    grown, began = growth(pid), time.monotonic()
    connections = sent = 0

    def is_over() -> bool:
        return time.monotonic() - began > (SECONDS if connections > AT_ONCE else LONGEST)

    async def floods() -> None:
        nonlocal connections, sent
        while not is_over():
            connections += 1
            sent += await flood(host, int(port), kind, is_over)

    async with bystander(address, waiting):
        await asyncio.gather(*(floods() for _ in range(AT_ONCE)))
    print(f"{grown() / MIB:.0f} MiB more at most, {sent / MIB:.0f} MiB sent by {connections} connections")
    assert connections > AT_ONCE
    assert grown() < FLOODED
    up.refresh()
    assert up.pids["inference"] == pid


@pytest.mark.parametrize(("entries", "most"), [(440, HELD), (1900, REFUSED)], ids=["allowed", "too many"])
async def test_headers_that_are_a_byte_each_on_the_wire_hold_little(up: Up, entries: int, most: int) -> None:
    """They may be sent again by their number in a table; each takes a hundred times as much."""
    metadata = await user(up, f"headers{entries}")
    grown = growth(up.pids["inference"])
    async with raw_connection(up.endpoints["inference"]) as connection:
        for _ in range(CALLS):
            await connection.open(INFER, [*metadata, *[("a", "")] * entries])
            await asyncio.sleep(0)
        stream = await connection.open(STREAM, metadata)
        await connection.send(stream, ENDLESS[:5])
        up.refresh()
    print(f"{grown() / MIB:.0f} MiB more at most")
    assert grown() < CALLS * most
