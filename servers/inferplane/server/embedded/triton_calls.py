"""What the owner of the embedded Triton asks it.

In bytes: Triton's message classes would bring numpy into a process that needs it for nothing else.
"""

from types import TracebackType
from typing import Any, Self

import grpc.aio

__all__ = ["TritonCalls"]

_TRUE = b"\x08\x01"  # the only field of ServerLiveResponse, ServerReadyResponse and ModelReadyResponse
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class TritonCalls:
    """A connection to Triton; `header` is the metadata that it wants. All calls raise AioRpcError."""

    def __init__(self, endpoint: str, header: tuple[str, str]) -> None:
        self._channel = grpc.aio.insecure_channel(endpoint, _OPTIONS)
        self._metadata = (header,)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def has_started(self, identity: str) -> bool:
        """Whether the Triton of that `--id` is live and ready; waits until somebody listens."""
        live_and_ready = [await self._ask(method, wait=True) for method in ("ServerLive", "ServerReady")] == [_TRUE] * 2
        return live_and_ready and identity.encode() in await self._ask("ServerMetadata", wait=True)

    async def live(self, timeout: float) -> bool:
        """Whether it answers within `timeout` seconds."""
        try:
            return await self._ask("ServerLive", timeout=timeout) == _TRUE
        except grpc.aio.AioRpcError:
            return False

    async def model_ready(self, name: str, version: str, timeout: float) -> bool:
        """Whether it serves this version of a model."""
        return await self._ask("ModelReady", _field(1, name) + _field(2, version), timeout=timeout) == _TRUE

    async def unload(self, name: str, timeout: float) -> None:
        """Have it stop serving a model."""
        await self._ask("RepositoryModelUnload", _field(2, name), timeout=timeout)

    async def _ask(
        self, method: str, request: bytes = b"", *, wait: bool = False, timeout: float | None = None
    ) -> bytes:
        call: Any = self._channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        answer: bytes = await call(request, metadata=self._metadata, wait_for_ready=wait, timeout=timeout)
        return answer


def _field(number: int, text: str) -> bytes:
    """A string field of a message (Protocol Buffers, Encoding: Length-Delimited Records)."""
    value = text.encode()
    length, size = bytearray(), len(value)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + value
