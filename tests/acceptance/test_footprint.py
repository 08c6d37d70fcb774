"""How long the mesh takes to be ready, and how much memory it holds when idle."""

import stat
from pathlib import Path

import psutil

from tests.support.http import fetch
from tests.support.up import Up, running_up

READY_WITHIN = 10.0
IDLE_MEGABYTES = 600


def processes(up: Up) -> list[psutil.Process]:
    """All of the mesh but Triton and what Triton started."""
    root = psutil.Process(up.process.pid)
    triton = psutil.Process(up.pids["triton"])
    excluded = {triton.pid, *(child.pid for child in triton.children(recursive=True))}
    return [root, *(child for child in root.children(recursive=True) if child.pid not in excluded)]


def test_it_is_ready_in_time_and_small(tmp_path: Path) -> None:
    """Memory is counted as proportional set size: a page that processes share counts once."""
    with running_up(tmp_path) as first:
        assert first.seconds < READY_WITHIN
    with running_up(tmp_path) as up:
        assert up.seconds < READY_WITHIN
        used = {process.pid: process.memory_full_info().pss for process in processes(up)}
        total = sum(used.values()) / 1e6
        print(f"ready after {first.seconds:.1f} s and {up.seconds:.1f} s; {total:.0f} MB in {len(used)} processes")
        assert total < IDLE_MEGABYTES


def test_others_may_not_look_into_the_data_directory(up: Up) -> None:
    assert stat.S_IMODE(up.data_dir.stat().st_mode) == 0o700


def test_every_process_has_metrics_and_probes(up: Up) -> None:
    for service, address in up.endpoints["metrics"].items():
        assert fetch(address, "/readyz")[0] == 200, service
        assert "inferplane_rpc_calls_total" in fetch(address, "/metrics")[1]
        assert fetch(address, "/elsewhere")[0] == 404
