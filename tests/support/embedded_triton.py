"""An embedded Triton looked at from outside: its processes, its folders, its shared memory."""

import asyncio
import contextlib
import os
import select
from pathlib import Path

import grpc.aio
import psutil

from inferplane.server.embedded.private_folders import TEMPORARY
from inferplane.server.embedded.triton import EmbeddedTriton
from inferplane.server.tensors import Signature, TensorSpec
from tests.support.onnx_models import identity
from tests.support.triton import load_model

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux


async def load_a_model(endpoint: str, header: tuple[str, str]) -> None:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        await load_model(channel, "m", 1, SIGNATURE, identity().SerializeToString(), header=header)


def stubs(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if "stub" in child.name()]


def model_folder(stub: psutil.Process, data_dir: Path) -> Path:
    """Where Triton keeps the model that the stub serves: the stub's first argument is `/tmp/FOLDER/1/model.py`."""
    name = Path(stub.cmdline()[1]).parent.parent.name
    (found,) = (root / name for root in (data_dir / "run" / "tmp", TEMPORARY) if (root / name).exists())
    return found


async def assert_gone(processes: list[psutil.Process], seconds: float = 10) -> None:
    """All of them ended, whether or not their parent has asked how."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(process.pid)
            ended, _, _ = await asyncio.to_thread(select.select, [descriptor], [], [], seconds)
            os.close(descriptor)
            assert ended, f"{process} goes on"


def remains(data_dir: Path) -> list[Path]:
    prefix = EmbeddedTriton(data_dir)._shm_prefix
    return list(SHARED_MEMORY.glob(f"{prefix}*"))
