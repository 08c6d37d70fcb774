"""Where a mesh is: its endpoints, the ready file of `inferplane up`, the saved profile."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import platformdirs

from inferplane.client.errors import ConfigurationError
from inferplane.client.files import write_private

BASE_PORT = 50051
PORT_ORDER = ("auth", "inference", "artifact", "reporting")
_TARGET = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The four services of a mesh, each as `host:port`. Raises ConfigurationError for anything else."""

    auth: str
    artifact: str
    inference: str
    reporting: str

    def __post_init__(self) -> None:
        for field in fields(self):
            target = getattr(self, field.name)
            if not isinstance(target, str) or not _TARGET.fullmatch(target):
                raise ConfigurationError(f"the endpoint of {field.name} is not host:port: {target!r}")

    @classmethod
    def of(cls, endpoints: Mapping[str, Any]) -> "Endpoints":
        """Take the four services from a mapping that may hold more."""
        return cls(**{field.name: endpoints.get(field.name, "") for field in fields(cls)})

    @classmethod
    def on(cls, host: str = "127.0.0.1", base_port: int = BASE_PORT) -> "Endpoints":
        """Take the ports that a mesh has by default: auth has `base_port`, the others follow."""
        ports = {name: f"{host}:{base_port + offset}" for offset, name in enumerate(PORT_ORDER)}
        return cls.of(ports)

    @property
    def mesh(self) -> str:
        """What identifies the mesh: credentials saved under one mesh are never sent to another."""
        return ",".join(f"{name}={target.lower()}" for name, target in sorted(asdict(self).items()))


@dataclass(frozen=True, slots=True)
class ReadyFile:
    """What `inferplane up` writes when every service answers."""

    endpoints: Endpoints
    admin_username: str = ""
    admin_password_file: Path | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "ReadyFile":
        """Read a ready file; raises ConfigurationError where it is missing or malformed."""
        expected = "the ready file; is the mesh up? start it with `inferplane up`"
        content = _read_object(Path(path), expected, "READY_FILE_MISSING")
        admin = content.get("admin")
        admin = admin if isinstance(admin, dict) else {}
        password_file = admin.get("password_file")
        return cls(
            _endpoints_in(content, Path(path)),
            str(admin.get("username", "")),
            Path(password_file) if isinstance(password_file, str) and password_file else None,
        )


def home() -> Path:
    """Tell where profile and credentials are kept: `INFERPLANE_HOME`, else the user's configuration folder."""
    chosen = os.environ.get("INFERPLANE_HOME")
    return Path(chosen) if chosen else platformdirs.user_config_path("inferplane")


def save_profile(endpoints: Endpoints, folder: Path | None = None) -> Path:
    """Make the mesh the one that is used where none is named; returns the profile's path."""
    path = (folder or home()) / "profile.json"
    content = {"version": 1, "endpoints": asdict(endpoints)}
    write_private(path, json.dumps(content, indent=2).encode() + b"\n")
    return path


def load_profile(folder: Path | None = None) -> Endpoints:
    """Read the saved mesh; raises ConfigurationError where there is none."""
    path = (folder or home()) / "profile.json"
    missing = "a profile; run `inferplane login`, or name the mesh with --ready-file"
    return _endpoints_in(_read_object(path, missing, "PROFILE_MISSING"), path)


def _read_object(path: Path, expected: str, reason: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path} ({error.strerror}): it should be {expected}", reason=reason
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} does not hold a JSON object")
    return content


def _endpoints_in(content: Mapping[str, Any], path: Path) -> Endpoints:
    endpoints = content.get("endpoints")
    if not isinstance(endpoints, dict):
        raise ConfigurationError(f"{path} names no endpoints")
    return Endpoints.of(endpoints)
