"""The client without async: the same objects and methods, run on an event loop in a thread of their own."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from inferplane.client import artifact, auth, inference, plane, reporting
from inferplane.client.calls import Backoff
from inferplane.client.endpoints import Endpoints

_A = TypeVar("_A")
_P = ParamSpec("_P")
_T = TypeVar("_T")


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="inferplane-client", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end; an interrupt in the waiting thread cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()


class Facade(Generic[_A]):
    """Stands for the async client `asynchronous`, whose methods run on `thread`."""

    def __init__(self, asynchronous: _A, thread: LoopThread) -> None:
        self.asynchronous = asynchronous
        self.thread = thread


def blocking(
    method: Callable[Concatenate[_A, _P], Awaitable[_T]],
) -> Callable[Concatenate[Facade[_A], _P], _T]:
    """Make the method that waits for what the async one gives; arguments and types stay as they are."""

    @wraps(method)
    def call(self: Facade[_A], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        async def work() -> _T:
            return await method(self.asynchronous, *args, **kwargs)

        return self.thread.run(work())

    return call


def iterating(
    method: Callable[Concatenate[_A, _P], AsyncIterator[_T]],
) -> Callable[Concatenate[Facade[_A], _P], Iterator[_T]]:
    """Make the method that gives one by one what the async one gives."""

    @wraps(method)
    def call(self: Facade[_A], /, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_T]:
        items = method(self.asynchronous, *args, **kwargs)

        async def following() -> _T:
            return await anext(items)

        while True:
            try:
                item = self.thread.run(following())
            except StopAsyncIteration:
                return
            yield item

    return call


class AuthClient(Facade[auth.AuthClient]):
    """See `inferplane.client.auth.AuthClient`."""

    login = blocking(auth.AuthClient.login)
    refresh = blocking(auth.AuthClient.refresh)
    access_token = blocking(auth.AuthClient.access_token)
    logout = blocking(auth.AuthClient.logout)
    whoami = blocking(auth.AuthClient.whoami)
    jwks = blocking(auth.AuthClient.jwks)
    create_user = blocking(auth.AuthClient.create_user)
    list_users = iterating(auth.AuthClient.list_users)
    grant = blocking(auth.AuthClient.grant)
    revoke = blocking(auth.AuthClient.revoke)
    list_grants = iterating(auth.AuthClient.list_grants)


class ArtifactClient(Facade[artifact.ArtifactClient]):
    """See `inferplane.client.artifact.ArtifactClient`; `progress` is called on the client's thread."""

    create_model = blocking(artifact.ArtifactClient.create_model)
    get_model = blocking(artifact.ArtifactClient.get_model)
    list_models = iterating(artifact.ArtifactClient.list_models)
    delete_model = blocking(artifact.ArtifactClient.delete_model)
    get_version = blocking(artifact.ArtifactClient.get_version)
    list_versions = iterating(artifact.ArtifactClient.list_versions)
    set_alias = blocking(artifact.ArtifactClient.set_alias)
    list_aliases = iterating(artifact.ArtifactClient.list_aliases)
    push = blocking(artifact.ArtifactClient.push)
    download = blocking(artifact.ArtifactClient.download)


class InferenceClient(Facade[inference.InferenceClient]):
    """See `inferplane.client.inference.InferenceClient`."""

    deploy = blocking(inference.InferenceClient.deploy)
    replace = blocking(inference.InferenceClient.replace)
    wait_ready = blocking(inference.InferenceClient.wait_ready)
    get = blocking(inference.InferenceClient.get)
    list_deployments = iterating(inference.InferenceClient.list_deployments)
    list = list_deployments
    undeploy = blocking(inference.InferenceClient.undeploy)
    predict = blocking(inference.InferenceClient.predict)


class ReportingClient(Facade[reporting.ReportingClient]):
    """See `inferplane.client.reporting.ReportingClient`."""

    submit_feedback = blocking(reporting.ReportingClient.submit_feedback)
    metrics = blocking(reporting.ReportingClient.metrics)
    quality = blocking(reporting.ReportingClient.quality)


class Inferplane(Facade[plane.Inferplane]):
    """A mesh: `with Inferplane.connect(endpoints, credentials) as plane`; see `inferplane.client.Inferplane`.

    Not to be used on a running event loop, which it would block.
    """

    auth: AuthClient
    artifact: ArtifactClient
    inference: InferenceClient
    reporting: ReportingClient

    @classmethod
    def connect(
        cls,
        endpoints: Endpoints | Mapping[str, str],
        credentials: plane.Credentials | None = None,
        *,
        timeout: float = 30.0,
        backoff: Backoff | None = None,
    ) -> Self:
        """Take a mesh by its endpoints."""
        made = plane.Inferplane.connect(endpoints, credentials, timeout=timeout, backoff=backoff)
        return cls(made, LoopThread())

    @classmethod
    def from_ready_file(
        cls,
        path: str | os.PathLike[str],
        credentials: plane.Credentials | None = None,
        *,
        as_admin: bool = False,
        timeout: float = 30.0,
    ) -> Self:
        """Take the mesh that `inferplane up` started, by its ready file."""
        made = plane.Inferplane.from_ready_file(path, credentials, as_admin=as_admin, timeout=timeout)
        return cls(made, LoopThread())

    @classmethod
    def from_profile(cls, folder: Path | None = None, *, timeout: float = 30.0) -> Self:
        """Take the mesh and the credentials that `inferplane login` saved."""
        return cls(plane.Inferplane.from_profile(folder, timeout=timeout), LoopThread())

    def __enter__(self) -> Self:
        """Start the thread and make the clients."""
        self.thread.start()
        try:
            made = self.thread.run(self.asynchronous.__aenter__())
        except BaseException:
            self.thread.stop()
            raise
        self.auth = AuthClient(made.auth, self.thread)
        self.artifact = ArtifactClient(made.artifact, self.thread)
        self.inference = InferenceClient(made.inference, self.thread)
        self.reporting = ReportingClient(made.reporting, self.thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections and end the thread."""
        try:
            self.thread.run(self.asynchronous.__aexit__(kind, error, trace))
        finally:
            self.thread.stop()
