"""Predictions that wait in a false Triton, and what they count for."""

import asyncio
from typing import Any

import grpc

from inferplane.server.access.snapshot import GrantRow
from tests.support.stand import echo

__all__ = ["Held", "counted", "failure_or_answer", "has_asked", "users"]


class Held:
    """A Triton whose answers wait until they are let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.version = "1"

    async def answer(self, request: Any) -> Any:
        await self.go.wait()
        return echo(request, self.version)


def has_asked(plane: Any, times: int) -> bool:
    """Whether Triton has had so many requests."""
    return len(plane.triton.requests) == times


def users(plane: Any, count: int) -> list[str]:
    """So many who may call everything."""
    names = [f"user{number}" for number in range(count)]
    plane.grants.extend(GrantRow(f"users/{name}", "caller", "*") for name in names)
    return names


async def failure_or_answer(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error


def counted(plane: Any, user: str) -> int:
    """The cost that counts against a caller."""
    share = plane.forwarder._under_way.requests._shares.get(f"users/{user}")
    return 0 if share is None else int(share.inside)
