"""A worker process that is killed in the middle of a write."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

import grpc

from inferplane.server.processes.protocol import Job, Ready
from inferplane.server.settings import ServiceName, Settings
from tests.support.artifact import (
    CHUNK,
    MIB,
    Artifacts,
    bytes_of,
    data_messages,
    digest,
    messages,
    new_upload,
    until_committed,
)
from tests.support.mesh import failure, running_mesh


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """An artifact worker as its supervisor starts it, and its port."""
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "inferplane.server.processes.worker", "--control-fd", str(theirs.fileno())),
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    try:
        job = Job(ServiceName.ARTIFACT.value, settings.to_worker(), 0, 0)
        writer.write(json.dumps(asdict(job)).encode() + b"\n")
        line = await asyncio.wait_for(reader.readline(), 30)
        yield process, Ready(**json.loads(line)).own_port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        writer.close()


async def test_what_was_acknowledged_outlives_a_kill_and_the_write_goes_on(settings: Settings) -> None:
    data, upload = bytes_of(3 * CHUNK + 5), new_upload()
    async with running_mesh(settings, ServiceName.AUTH) as mesh:
        metadata = await mesh.login()
        async with (
            worker(mesh.settings) as (process, port),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            artifacts = Artifacts(channel, metadata)
            await artifacts.model()
            call = artifacts.write(*data_messages(upload, data[: 2 * CHUNK + 3 * MIB]), ends=False)
            await until_committed(artifacts, upload, CHUNK)
            process.kill()
            assert (await failure(call)).code() == grpc.StatusCode.UNAVAILABLE
        async with worker(mesh.settings) as (_, port), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            artifacts = Artifacts(channel, metadata)
            status = await artifacts.status(upload)
            assert status.committed_size in (CHUNK, 2 * CHUNK)
            answer = await artifacts.write(*messages(upload, data, status.committed_size))
            assert (answer.upload.complete, answer.upload.digest) == (True, digest(data))
