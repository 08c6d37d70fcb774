"""Tokens, and where they are kept: in memory or in a file that several processes share."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from inferplane.auth.v1 import session_pb2
from inferplane.client.endpoints import Endpoints, home
from inferplane.client.errors import ConfigurationError
from inferplane.client.files import FileLock, read_private, write_private

REFRESH_TIMEOUT = 10.0
"""The longest that one try of a refresh may take, in seconds."""
REFRESH_TRIES = 3
"""How often a refresh is tried that gets no answer in time. All tries must be over well before the service's grace for
a used refresh token is, 90 s."""
# Longer than all tries of the refresh that the holder of the lock is waiting for.
_LOCK_TIMEOUT = 60.0
_MARGIN = timedelta(seconds=30)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A session's tokens. `refresh_token` is empty where an access token was all that was given.

    `received` is this machine's clock at the time the tokens came, against which `access_expires` is judged.
    """

    access_token: str = field(repr=False)
    access_expires: datetime | None = None
    refresh_token: str = field(default="", repr=False)
    refresh_expires: datetime | None = None
    received: datetime = field(default_factory=_now)

    @classmethod
    def of(cls, pair: session_pb2.TokenPair) -> "Tokens":
        """Take the tokens from the service's answer."""
        return cls(
            pair.access_token,
            pair.access_token_expire_time.ToDatetime(tzinfo=UTC),
            pair.refresh_token,
            pair.refresh_token_expire_time.ToDatetime(tzinfo=UTC),
        )

    def expires_soon(self, now: datetime | None = None) -> bool:
        """Tell whether to refresh before the next call: within 30 s, or a tenth of the lifetime, of expiry.

        Where the token seems to have been expired when it came, the clocks disagree and nothing can be told
        from them: the service will say when it is over.
        """
        if self.access_expires is None or self.access_expires <= self.received:
            return False
        margin = min(_MARGIN, (self.access_expires - self.received) / 10)
        return (now or _now()) >= self.access_expires - margin

    def expired(self) -> bool:
        """Tell whether the access token is past its expiry by this machine's clock."""
        return self.access_expires is not None and _now() >= self.access_expires

    def to_json(self) -> dict[str, str]:
        """Give the tokens as JSON values."""
        return {
            "access_token": self.access_token,
            "access_expires": self.access_expires.isoformat() if self.access_expires else "",
            "refresh_token": self.refresh_token,
            "refresh_expires": self.refresh_expires.isoformat() if self.refresh_expires else "",
            "received": self.received.isoformat(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tokens":
        """Read what `to_json` gave; raises KeyError, TypeError or ValueError."""
        return cls(
            content["access_token"],
            _time(content["access_expires"]),
            content["refresh_token"],
            _time(content["refresh_expires"]),
            datetime.fromisoformat(content["received"]),
        )


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


class TokenStore(ABC):
    """Where the tokens of one mesh are kept."""

    @abstractmethod
    async def load(self) -> Tokens | None:
        """Give the tokens saved last; None when logged out."""

    @abstractmethod
    async def save(self, tokens: Tokens | None) -> None:
        """Replace the tokens; None logs out. Call it inside `exclusive`."""

    @abstractmethod
    async def load_device(self, username: str) -> str:
        """Give what proves that the user has signed in from here; empty where there is nothing."""

    @abstractmethod
    async def save_device(self, username: str, token: str) -> None:
        """Keep it, beyond the end of the session. Call it inside `exclusive`."""

    @abstractmethod
    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Keep everybody else who shares the store from refreshing meanwhile."""


class MemoryStore(TokenStore):
    """Keeps the tokens for as long as the process lives."""

    def __init__(self, tokens: Tokens | None = None) -> None:
        self._tokens = tokens
        self._devices: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def load(self) -> Tokens | None:
        """Give the tokens saved last."""
        return self._tokens

    async def save(self, tokens: Tokens | None) -> None:
        """Replace the tokens."""
        self._tokens = tokens

    async def load_device(self, username: str) -> str:
        """Give the device token saved last."""
        return self._devices.get(username, "")

    async def save_device(self, username: str, token: str) -> None:
        """Keep a device token."""
        self._devices[username] = token

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold the lock of this store."""
        async with self._lock:
            yield


class FileStore(TokenStore):
    """Keeps the tokens of each mesh in `credentials.json`, shared by processes under a file lock.

    The file has mode 0600; a wider one is refused with ConfigurationError.
    """

    def __init__(self, endpoints: Endpoints, folder: Path | None = None) -> None:
        self._mesh = endpoints.mesh
        self._path = (folder or home()) / "credentials.json"

    async def load(self) -> Tokens | None:
        """Read the tokens of this mesh."""
        return await asyncio.to_thread(self._load)

    async def save(self, tokens: Tokens | None) -> None:
        """Write the tokens of this mesh; those of others stay."""
        await asyncio.to_thread(self._save, tokens)

    async def load_device(self, username: str) -> str:
        """Read the user's device token of this mesh."""
        return await asyncio.to_thread(self._load_device, username)

    async def save_device(self, username: str, token: str) -> None:
        """Write the user's device token of this mesh."""
        await asyncio.to_thread(self._save_device, username, token)

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold the flock of the folder's credentials, waiting for it off the event loop."""
        lock = FileLock(self._path.with_suffix(".lock"))
        acquiring = asyncio.ensure_future(asyncio.to_thread(lock.acquire, _LOCK_TIMEOUT))
        try:
            await asyncio.shield(acquiring)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: let it give back what it will get.
            acquiring.add_done_callback(lambda _: lock.release())
            raise
        try:
            yield
        finally:
            lock.release()

    def _content(self) -> dict[str, dict[str, Any]]:
        """The file's two parts, each by mesh: `meshes` are the tokens, `devices` the device tokens by user."""
        data = read_private(self._path)
        try:
            content = json.loads(data) if data is not None else {"meshes": {}}
            parts = {"meshes": content["meshes"], "devices": content.get("devices", {})}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._malformed() from error
        if not all(isinstance(part, dict) for part in parts.values()):
            raise self._malformed()
        return parts

    def _malformed(self) -> ConfigurationError:
        return ConfigurationError(f"{self._path} is malformed; remove it and run `inferplane login`")

    def _load(self) -> Tokens | None:
        saved = self._content()["meshes"].get(self._mesh)
        if saved is None:
            return None
        try:
            return Tokens.from_json(saved)
        except (ValueError, KeyError, TypeError) as error:
            raise self._malformed() from error

    def _save(self, tokens: Tokens | None) -> None:
        content = self._content()
        if tokens is None:
            content["meshes"].pop(self._mesh, None)
        else:
            content["meshes"][self._mesh] = tokens.to_json()
        self._write(content)

    def _load_device(self, username: str) -> str:
        try:
            return str(self._content()["devices"].get(self._mesh, {}).get(username, ""))
        except AttributeError as error:
            raise self._malformed() from error

    def _save_device(self, username: str, token: str) -> None:
        content = self._content()
        content["devices"].setdefault(self._mesh, {})[username] = token
        self._write(content)

    def _write(self, content: dict[str, dict[str, Any]]) -> None:
        write_private(self._path, json.dumps({"version": 1, **content}, indent=2).encode() + b"\n")
