"""Triton as the wheel `nvidia-pytriton` brings it."""

import importlib.util
import os
import platform
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EmbeddedTritonError", "TritonWheel", "find_wheel"]


class EmbeddedTritonError(RuntimeError):
    """Triton is not installed, cannot run on this machine, or ended while it started."""


@dataclass(frozen=True, slots=True)
class TritonWheel:
    """Where the wheel keeps its parts, and what their libraries need."""

    packages: Path
    binary: Path
    backend: Path
    stub: Path
    library_path: str


def find_wheel() -> TritonWheel:
    """Where it is. Raises EmbeddedTritonError where it is not installed or cannot run on this machine."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise EmbeddedTritonError(
            "the embedded Triton runs on Linux x86_64 only; name a Triton of your own in the settings"
        )
    libc, version = platform.libc_ver()
    if libc == "glibc" and tuple(map(int, version.split(".")[:2])) < (2, 35):
        raise EmbeddedTritonError(f"the embedded Triton needs glibc 2.35 or newer, this machine has {version}")
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedTritonError(
            "the embedded Triton is not installed: pip install 'inferplane[server,embedded]', "
            "or name a Triton of your own in the settings"
        )
    package = Path(spec.submodule_search_locations[0])
    root = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    wheel = TritonWheel(
        packages=package.parent,
        binary=root / "bin" / "tritonserver",
        backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / python / "triton_python_backend_stub",
        library_path=os.pathsep.join((str(package.parent / "nvidia_pytriton.libs"), *_python_libraries())),
    )
    for part in (wheel.binary, wheel.backend, wheel.stub):
        if not part.exists():
            raise EmbeddedTritonError(f"the wheel nvidia-pytriton lacks {part}; reinstall inferplane[embedded]")
    return wheel


def _python_libraries() -> tuple[str, ...]:
    """Folders of the running Python's shared library, to which Triton's stub is linked."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    own = (sysconfig.get_config_var("LIBDIR") or "", str(Path(sys.base_prefix) / "lib"))
    found = tuple(dict.fromkeys(folder for folder in own if folder and Path(folder, name).exists()))
    system = (
        "/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib",
    )
    if not found and not any(Path(folder, name).exists() for folder in system):
        raise EmbeddedTritonError(
            f"the embedded Triton needs {name}, which this Python does not have: "
            "use a Python that was built with --enable-shared, or install the system's libpython"
        )
    return found
