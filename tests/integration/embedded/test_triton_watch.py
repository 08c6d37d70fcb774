"""What becomes of a Triton, or a model's process, that does not answer or does not end."""

import asyncio
import signal
from collections.abc import Callable
from functools import partial

import grpc.aio
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from inferplane.server.embedded import triton_watch
from inferplane.server.embedded.triton import EmbeddedTriton
from inferplane.server.embedded.triton_calls import TritonCalls
from inferplane.server.embedded.triton_watch import TritonWatch
from inferplane.server.inference.formats import onnx
from tests.support.embedded_triton import SIGNATURE, assert_gone, load_a_model, stubs
from tests.support.onnx_models import counting, identity
from tests.support.processes import computes
from tests.support.triton import load_model


async def test_a_hung_triton_is_killed(server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_watch, "ANSWER_SECONDS", 1.0)
    await server.start()
    await load_a_model(server.endpoint, server.header)
    processes = [psutil.Process(server.pid), *stubs(server.pid)]
    processes[0].suspend()
    async with asyncio.timeout(60):
        assert await server.wait() == -signal.SIGKILL
    await assert_gone(processes)


async def test_a_model_whose_process_died_is_unloaded(server: EmbeddedTriton) -> None:
    """Triton would go on to call it READY, and fail each call."""
    await server.start()
    await load_a_model(server.endpoint, server.header)
    (stub,) = stubs(server.pid)
    stub.kill()
    async with TritonCalls(server.endpoint, server.header) as calls:
        async with asyncio.timeout(60):
            while await calls.model_ready("m", "1", 5):  # noqa: ASYNC110 - Triton tells nobody
                await asyncio.sleep(0.1)
        await load_a_model(server.endpoint, server.header)
        assert await calls.model_ready("m", "1", 5)


async def test_a_model_that_lives_is_left_alone(server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_watch, "INTERVAL", 0.01)
    looks = asyncio.Semaphore(0)
    look = TritonWatch._look

    async def counted(watch: TritonWatch) -> None:
        await look(watch)
        looks.release()

    monkeypatch.setattr(TritonWatch, "_look", counted)
    server._linger = 0.0
    await server.start()
    await load_a_model(server.endpoint, server.header)
    before = stubs(server.pid)
    async with asyncio.timeout(60):
        for _ in range(50):
            await looks.acquire()
    assert stubs(server.pid) == before


@pytest.mark.parametrize("successor", [None, 1, 2], ids=["undeployed", "same version", "next version"])
async def test_a_process_that_outlives_its_model_is_killed(
    server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch, successor: int | None
) -> None:
    """In place of a node that computes for ever: a shim that does not look whether its caller is there."""
    server._linger = 1.0
    await server.start()
    async with (
        grpc.aio.insecure_channel(server.endpoint) as channel,
        TritonCalls(server.endpoint, server.header) as calls,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with monkeypatch.context() as patch:
            patch.setattr(onnx, "_support_files", partial(files_of_a_deaf_shim, onnx._support_files))
            endless = counting(1 << 60).SerializeToString()
            await load_model(channel, "m", 1, SIGNATURE, endless, header=server.header)
        (old,) = stubs(server.pid)
        request = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"\0" * 4])
        request.inputs.add(name="x", datatype="FP32", shape=[1])
        call = stub.ModelInfer(request, metadata=(server.header,))
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(computes, old):
                pass
        if successor is None:
            unload = service_pb2.RepositoryModelUnloadRequest(model_name="m")
            await stub.RepositoryModelUnload(unload, metadata=(server.header,))
        else:
            other = identity().SerializeToString()
            await load_model(channel, "m", successor, SIGNATURE, other, header=server.header, digest="other bytes")
        await assert_gone([old], seconds=60)
        assert await calls.model_ready("m", str(successor or 1), 5) == (successor is not None)
        assert len(stubs(server.pid)) == (successor is not None)
        call.cancel()


def files_of_a_deaf_shim(
    support_files: Callable[..., dict[str, bytes]], version: int, *, native: bool
) -> dict[str, bytes]:
    files = support_files(version, native=native)
    shim = f"file:{version}/model.py"
    if shim in files:
        files[shim] = files[shim].replace(b"_LOOK_AFTER_CALLERS = 0.5", b"_LOOK_AFTER_CALLERS = 1e6")
    return files
