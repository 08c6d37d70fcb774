"""`inferplane up` as a user runs it: a process of its own, found by its ready file."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferplane.client import Inferplane

COMMAND = Path(sys.executable).with_name("inferplane")
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Up:
    """A running mesh."""

    def __init__(self, process: "subprocess.Popen[bytes]", ready_file: Path, data_dir: Path, seconds: float) -> None:
        self.process = process
        self.ready_file = ready_file
        self.data_dir = data_dir
        self.seconds = seconds
        self.ready: dict[str, Any] = json.loads(ready_file.read_text())

    def refresh(self) -> None:
        """Read the ready file again: a process that was replaced has another pid there."""
        self.ready = json.loads(self.ready_file.read_text())

    @property
    def endpoints(self) -> dict[str, Any]:
        endpoints: dict[str, Any] = self.ready["endpoints"]
        return endpoints

    @property
    def pids(self) -> dict[str, int]:
        pids: dict[str, int] = self.ready["pids"]
        return pids

    @property
    def triton_header(self) -> tuple[str, str]:
        """What direct calls of Triton must carry."""
        name, _, value = Path(self.ready["triton_header_file"]).read_text().strip().partition(": ")
        return name, value

    def admin(self) -> Inferplane:
        """A client that is the administrator."""
        return Inferplane.from_ready_file(self.ready_file, as_admin=True)

    def run(self, *arguments: str, home: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run `inferplane ARGUMENTS` against this mesh."""
        environment = {**os.environ, "INFERPLANE_READY_FILE": str(self.ready_file), "INFERPLANE_HOME": str(home)}
        return subprocess.run(
            [COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60, **options
        )

    def status(self, service: str, name: str) -> int:
        """The health status of `name` on a service's endpoint; -1 where it does not answer."""
        with grpc.insecure_channel(self.endpoints[service]) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                return int(stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=2).status)
            except grpc.RpcError:
                return -1


@contextmanager
def running_up(
    directory: Path, *arguments: str, environment: Mapping[str, str] | None = None, data_dir: Path | None = None
) -> Iterator[Up]:
    """Start `inferplane up` on free ports with its state below `directory`, and stop it."""
    ready_file, data_dir = directory / "ready.json", data_dir or directory / "data"
    began = time.monotonic()
    log = (directory / "up.log").open("ab")
    process = subprocess.Popen(
        [COMMAND, "up", "--base-port", "0", "--data-dir", data_dir, "--ready-file", ready_file, *arguments],
        stderr=log,
        env={**os.environ, "INFERPLANE_LOG_LEVEL": "warning", **(environment or {})},
    )
    try:
        wait_for(lambda: ready_file.exists() or process.poll() is not None, 60)
        assert process.poll() is None, (directory / "up.log").read_text()[-4000:]
        assert ready_file.exists()
        yield Up(process, ready_file, data_dir, time.monotonic() - began)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()


def wait_for(condition: Callable[[], Any], seconds: float) -> float:
    """Poll until `condition` holds; how long that took. Fails after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - began
