"""The entry: one object for the four services of a mesh."""

import contextlib
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from inferplane.auth.v1 import auth_service_pb2
from inferplane.client.artifact import ArtifactClient
from inferplane.client.auth import AuthClient
from inferplane.client.calls import Backoff, unary
from inferplane.client.channels import make_channel
from inferplane.client.endpoints import Endpoints, ReadyFile, load_profile
from inferplane.client.errors import ConfigurationError, DeadlineExceeded
from inferplane.client.inference import InferenceClient
from inferplane.client.interceptors import interceptors
from inferplane.client.reporting import ReportingClient
from inferplane.client.session import Session
from inferplane.client.tokens import (
    REFRESH_TIMEOUT,
    REFRESH_TRIES,
    FileStore,
    MemoryStore,
    Tokens,
    TokenStore,
)

_INFERENCE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Password:
    """A username and a password, with which a session is opened when the client connects."""

    username: str
    password: str = field(repr=False)


Credentials = Password | Tokens | TokenStore | str
"""What calls are made with: a password, tokens, a store of them, or just an access token."""


class Inferplane:
    """A mesh: `async with Inferplane.connect(endpoints, credentials) as plane`.

    `auth`, `artifact`, `inference` and `reporting` are the typed clients of its services, there from entering
    to leaving. Calls without a timeout of their own get `timeout` seconds; streams have no deadline.
    """

    auth: AuthClient
    artifact: ArtifactClient
    inference: InferenceClient
    reporting: ReportingClient

    def __init__(
        self,
        endpoints: Endpoints,
        credentials: Credentials | None = None,
        *,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> None:
        self.endpoints = endpoints
        self._password = credentials if isinstance(credentials, Password) else None
        self._store = _store(credentials)
        self._timeout = timeout
        self._backoff = backoff
        self._resources = AsyncExitStack()

    @classmethod
    def connect(
        cls,
        endpoints: Endpoints | Mapping[str, str],
        credentials: Credentials | None = None,
        *,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> Self:
        """Take a mesh by its endpoints; connections are made when the first call needs them.

        `backoff` says how long broken transfers are tried again. Raises ConfigurationError.
        """
        where = endpoints if isinstance(endpoints, Endpoints) else Endpoints.of(endpoints)
        return cls(where, credentials, timeout=timeout, backoff=backoff)

    @classmethod
    def from_ready_file(
        cls,
        path: str | os.PathLike[str],
        credentials: Credentials | None = None,
        *,
        as_admin: bool = False,
        timeout: float = 30.0,
    ) -> Self:
        """Take the mesh that `inferplane up` started, by its ready file.

        Without credentials those saved for this mesh by `inferplane login` are used; `as_admin` logs in as the
        administrator that the ready file names. Raises ConfigurationError.
        """
        ready = ReadyFile.read(path)
        if as_admin:
            credentials = _admin(ready)
        return cls(ready.endpoints, credentials or FileStore(ready.endpoints), timeout=timeout)

    @classmethod
    def from_profile(cls, folder: Path | None = None, *, timeout: float = 30.0) -> Self:
        """Take the mesh and the credentials that `inferplane login` saved; raises ConfigurationError."""
        endpoints = load_profile(folder)
        return cls(endpoints, FileStore(endpoints, folder), timeout=timeout)

    async def __aenter__(self) -> Self:
        """Make the clients and, where a password was given, open a session."""
        session = Session(self._store, self._refresh)
        try:
            self.auth = AuthClient(await self._channel(self.endpoints.auth, session), session)
            artifact = await self._channel(self.endpoints.artifact, session)
            self.artifact = ArtifactClient(artifact, self._backoff)
            inference = await self._channel(self.endpoints.inference, session, max_receive=_INFERENCE_BYTES)
            self.inference = InferenceClient(inference, self.artifact.registry)
            self.reporting = ReportingClient(await self._channel(self.endpoints.reporting, session))
            # Entered last and so left first: a refresh under way needs its channel.
            self._resources.push_async_callback(session.close)
            if self._password is not None:
                await self.auth.login(self._password.username, self._password.password)
        except BaseException:
            await self._resources.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections; the session stays open for whoever has its tokens."""
        await self._resources.aclose()

    async def _channel(self, target: str, session: Session, **options: int) -> grpc.aio.Channel:
        channel = make_channel(target, interceptors(session, self._timeout), **options)
        return await self._resources.enter_async_context(channel)

    async def _refresh(self, refresh_token: str) -> Tokens:
        request = auth_service_pb2.RefreshTokenRequest(refresh_token=refresh_token)

        async def exchange() -> Tokens:
            answer = await unary(self.auth.service.RefreshToken, request, min(self._timeout, REFRESH_TIMEOUT))
            return Tokens.of(answer.tokens)

        for _ in range(REFRESH_TRIES - 1):
            # Where no answer came it may have been lost: for a while the same token answers the same again.
            with contextlib.suppress(DeadlineExceeded):
                return await exchange()
        return await exchange()


def _store(credentials: Credentials | None) -> TokenStore:
    if isinstance(credentials, TokenStore):
        return credentials
    if isinstance(credentials, str):
        return MemoryStore(Tokens(credentials))
    return MemoryStore(credentials if isinstance(credentials, Tokens) else None)


def _admin(ready: ReadyFile) -> Password:
    if ready.admin_password_file is None:
        raise ConfigurationError("the ready file names no administrator")
    try:
        password = ready.admin_password_file.read_text().rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"cannot read {error.filename}: {error.strerror}") from error
    return Password(ready.admin_username, password)
