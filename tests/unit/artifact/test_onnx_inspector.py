"""The process that inspects: what a file may make it take, and what becomes of it when something goes wrong."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import psutil
import pytest

from inferplane.server.artifact import onnx_inspection
from inferplane.server.artifact.onnx_inspection import inspect_onnx
from inferplane.server.errors import InferplaneError
from tests.support.inspection import INVALID, inspect, refusal
from tests.support.onnx_models import identity


def field(number: int, content: bytes) -> bytes:
    """A protobuf field that holds bytes or a message."""
    size, varint = len(content), bytearray()
    while size > 127:
        varint.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *varint, size]) + content


def swelling(nodes: int) -> bytes:
    """A model with that many empty nodes: two bytes each here, a hundred and more once they are parsed."""
    whole = identity()
    rest = whole.graph.SerializeToString() + field(1, b"") * nodes
    whole.ClearField("graph")
    return whole.SerializeToString() + field(7, rest)


async def test_a_file_that_swells_in_memory_is_refused() -> None:
    expected = (INVALID, "the file takes too much memory to read")
    assert await refusal(swelling(4_000_000), max_memory=96 * 2**20) == expected


async def test_deep_nesting_is_refused() -> None:
    graph = b""
    for _ in range(10_000):
        graph = field(1, field(5, field(6, graph)))
    expected = (INVALID, "the file is not a complete ONNX protobuf message")
    assert await refusal(b"\x08\x08" + field(7, graph)) == expected


async def test_processor_time_is_bounded() -> None:
    expected = (INVALID, "the file takes more than 1 s of processor time to read")
    assert await refusal(swelling(4_000_000), cpu_seconds=1) == expected


async def test_time_is_bounded() -> None:
    expected = (INVALID, "the file takes longer than 0.05 s to read")
    assert await refusal(swelling(4_000_000), timeout=0.05) == expected


async def test_a_file_larger_than_protobuf_allows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_inspection, "MAX_MODEL_BYTES", 10)
    expected = (INVALID, "the file is larger than 2 GiB, which no ONNX file can be")
    assert await refusal(identity().SerializeToString()) == expected


def inspectors() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "onnx_inspection" in " ".join(child.cmdline())]


async def test_a_crash_of_the_parser_is_a_refusal() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"\x08"
        for child in inspectors():
            child.kill()
            child.wait()
        yield bytes(1_000_000)

    with pytest.raises(InferplaneError) as caught:
        await inspect_onnx(chunks())
    assert caught.value.reason == INVALID
    assert caught.value.metadata == {"detail": "the file crashes the ONNX parser"}


async def test_an_error_of_the_source_ends_the_process_and_is_passed_on() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"\x08"
        raise LookupError("blob is gone")

    with pytest.raises(LookupError, match="blob is gone"):
        await inspect_onnx(chunks())
    assert inspectors() == []


async def test_cancellation_ends_the_process() -> None:
    fed = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"\x08"
        fed.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(inspect_onnx(chunks()))
    await fed.wait()
    assert len(inspectors()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inspectors() == []


async def test_a_broken_installation_is_not_the_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_inspection, "__name__", "inferplane.no_such_module")
    with pytest.raises(RuntimeError, match=r"cannot start: .*no_such_module"):
        await inspect(b"")


async def test_the_process_does_not_see_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERPLANE_DATABASE_URL", "postgresql://secret")
    seen: list[dict[str, str]] = []

    async def chunks() -> AsyncIterator[bytes]:
        seen.extend(child.environ() for child in inspectors())
        yield identity().SerializeToString()

    await inspect_onnx(chunks())
    assert len(seen) == 1
    assert "INFERPLANE_DATABASE_URL" not in seen[0]


def test_the_server_does_not_import_onnx() -> None:
    program = "import sys, inferplane.server.artifact.onnx_inspection; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
