"""How the typed clients call their stubs: errors translated, pages walked, pauses between tries."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from inferplane.client.errors import InferplaneClientError, Internal, translate


class _Page(Protocol):
    next_page_token: str


_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_PageT = TypeVar("_PageT", bound=_Page)
_Item = TypeVar("_Item")


def new_key() -> str:
    """Make an idempotency key: retries of one call share it, another call never does."""
    return str(uuid.uuid4())


async def unary(
    method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
    request: _Request,
    timeout: float | None = None,
) -> _Response:
    """Make a call; `timeout` in seconds, None for the client's default. Raises InferplaneClientError."""
    try:
        return await method(request, timeout=timeout)
    except grpc.aio.AioRpcError as error:
        raise translate(error) from error


async def walk(
    method: grpc.aio.UnaryUnaryMultiCallable[_Request, _PageT],
    request: Callable[[str], _Request],
    items: Callable[[_PageT], Iterable[_Item]],
    timeout: float | None = None,
) -> AsyncIterator[_Item]:
    """Give the items of all pages, each page asked for when it is reached; `timeout` is for each page."""
    token = ""
    while True:
        page = await unary(method, request(token), timeout)
        for item in items(page):
            yield item
        if not page.next_page_token:
            return
        if page.next_page_token == token:
            raise Internal("the service gave the same page twice")
        token = page.next_page_token


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between tries, in seconds, and how many tries without progress are too many."""

    initial: float = 0.1
    maximum: float = 5.0
    factor: float = 2.0
    attempts: int = 8


class Stall:
    """Counts the tries since the last progress."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._best = -1
        self._failures = 0

    def reached(self, position: int) -> None:
        """Tell how far the work has come; getting further starts the count anew."""
        if position > self._best:
            self._best, self._failures = position, 0

    async def pause(self, error: InferplaneClientError) -> None:
        """Wait before the next try, longer each time; raises `error` after too many."""
        self._failures += 1
        if self._failures >= self._backoff.attempts:
            raise error
        wait = self._backoff.initial * self._backoff.factor ** (self._failures - 1)
        await asyncio.sleep(min(max(wait, error.retry_after or 0.0), self._backoff.maximum))
